"""The MPI driver under real mpirun."""

from __future__ import annotations

import pytest

from tests.ranks import mpi
from tests.ranks.scenario import Job, Scenario, each_scenario
from tests.ranks.server import Server

pytestmark = pytest.mark.multiprocess


@each_scenario(mpi)
def test_scenario(server: Server, job: Job, scenario: Scenario) -> None:
    server.run(job, scenario)
