"""Workers that are threads of this process, and meet as those of a job do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hvd_compress.drivers.leaving import Job


def meet(works: Sequence[Callable[[Job], Any]]) -> list[Any]:
    """Run what each worker does, given the job as it sees that; return their results."""
    count = len(works)
    barrier = threading.Barrier(count, timeout=60)
    given: list[Any] = [None] * count

    def job_of(rank: int) -> Job:
        def gather(thing: Any) -> list[Any]:
            given[rank] = thing
            barrier.wait()
            everything = list(given)
            barrier.wait()
            return everything

        return Job(
            rank=lambda: rank,
            size=lambda: count,
            broadcast=lambda thing: gather(thing)[0],
            gather=gather,
            total=lambda array: np.sum(gather(array), axis=0, dtype=np.float32),
        )

    def run(rank: int) -> Any:
        try:
            return works[rank](job_of(rank))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
