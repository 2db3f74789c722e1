import os

import job
import pytest


@pytest.mark.parametrize(
    ("told", "ranks", "threads"),
    [("3", 2, 3), ("", 10_000, 1), ("0", 10_000, 1), ("4,2", 10_000, 1), ("", 1, len(os.sched_getaffinity(0)))],
)
def test_threads_of_a_rank(told: str, ranks: int, threads: int) -> None:
    assert job.threads_of(told, ranks) == threads
