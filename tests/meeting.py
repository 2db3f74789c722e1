"""Workers of this process that meet as those of a job do, and such that are in the middle of a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hvd_compress import Simulation
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


def begin_step(sim: Simulation, ranks: Iterable[int], gradients: Mapping[str, Sequence[Any]]) -> list[Iterator[Any]]:
    """Have these workers come to the middle of a step; they are there for as long as what is returned lives."""
    under_way = []
    for rank in ranks:
        worker = sim._workers[rank]
        worker.begin({name: arrays[rank] for name, arrays in gradients.items()})
        under_way.append(worker.stepping())
        next(under_way[-1])
    return under_way
