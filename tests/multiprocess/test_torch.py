"""The PyTorch driver under real mpirun and horovodrun."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("horovod.torch")

from tests.ranks import torch
from tests.ranks.launching import launch
from tests.ranks.scenario import Job, Scenario, each_scenario
from tests.ranks.server import Server
from tests.ranks.torch import lgc_route

pytestmark = pytest.mark.multiprocess


@each_scenario(torch)
def test_scenario(server: Server, job: Job, scenario: Scenario) -> None:
    server.run(job, scenario)


@pytest.mark.long
@pytest.mark.ends_ranks
@pytest.mark.parametrize("job", [Job("torch", "mpirun", 4)], ids=str)
def test_an_end_in_phase_2(server: Server, job: Job) -> None:
    """With messages to LGC's trainer under way: the ranks end as well as without."""
    server.end()
    server.call(job, lgc_route.long_vectors_under_way)
    server.end()


@pytest.mark.long
@pytest.mark.parametrize("arguments", [[], ["mpi4py"]])
def test_initialized_again_over_mpi(arguments: list[str]) -> None:
    done = launch("mpirun", 2, ["-m", "tests.ranks.torch.initialized_again", *arguments], timeout=120)
    assert done.returncode == 0, done.stdout


def test_horovod_ends_while_a_rank_has_pythons_lock() -> None:
    done = launch("mpirun", 2, ["-m", "tests.ranks.torch.ended_under_a_lock"], timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "launcher",
    ["gloo", *(pytest.param(launcher, marks=pytest.mark.long) for launcher in ("mpirun", "horovodrun"))],
)
def test_a_killed_rank_ends_the_job(launcher: str) -> None:
    began = time.monotonic()
    done = launch(launcher, 2, ["-m", "tests.ranks.torch.killed"], timeout=120)
    assert done.returncode != 0
    assert "[killed after" not in done.stdout, "the other rank hung"
    assert "step 5" in done.stdout
    assert "step 40" not in done.stdout
    assert time.monotonic() - began < 120
