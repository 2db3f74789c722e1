"""What goes wrong on a rank is told, at once, and the next scenario finds ranks that work."""

from __future__ import annotations

import pytest

from tests.ranks.mpi import faults
from tests.ranks.scenario import Job
from tests.ranks.server import Server

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize("job", [Job("mpi", "mpirun", 2)], ids=str)
def test_faults(server: Server, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.ranks.server.GRACE", 1)
    with pytest.raises(AssertionError, match="rank 1: Traceback") as caught:
        server.call(job, faults.fail)
    assert "RuntimeError: as intended" in str(caught.value)
    assert "ranks [0] waited 1 s longer" in str(caught.value)
    assert 'faults.py", line 14 in fail' in str(caught.value)
    server.call(job, faults.fine)
    with pytest.raises(AssertionError, match="rank 1: died"):
        server.call(job, faults.die)
    with pytest.raises(AssertionError, match=r"ranks \[0, 1\] took more than 2 s") as caught:
        server.call(job, faults.hang, limit=2)
    assert str(caught.value).count('faults.py", line 26 in hang') == 2
    server.call(job, faults.fine)
