"""Measures what ``cluster`` needs to know, between the ranks of a Horovod job."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

from hvd_compress.advisor.cluster import ALLGATHER, ALLREDUCE, BROADCAST, HALF
from hvd_compress.advisor.driver_benchmark import measure_driver
from hvd_compress.advisor.exchange_timing import fastest

SIZES = tuple(4096 * 4**power for power in range(8))
"""Bytes of the collectives that are measured: 4 KiB to 64 MiB."""
PAUSE = 0.02
"""Seconds before each, as a training has them: what queues and buffers let pass at once they let pass again."""
SLOW = 10
"""A collective that takes some of the limit, rather than little, is given so many times the limit."""
DRIVER_TURNS = 20
"""The driver is measured in so many turns for every second of the limit."""
TENSORS = 64
"""So many small tensors are reduced at once, to tell what each of them costs."""


def measure_network(limit: float = 0.3, most: float = 2.0, share: float = 1.0) -> dict[str, Any]:
    """Measure between the ranks of a running Horovod job (PyTorch); call it on all of them. It takes some 20 seconds.

    1. Collectives of growing size, until one takes ``most`` seconds; medians over about ``limit`` seconds, of the
       fastest ``share``. The largest that do not take longer than ``limit`` once more while the rank computes.
    2. A message there and back through MPI, many small tensors at once, a computation with and without a collective.
    3. What the driver adds to a step (``driver_benchmark``).

    Return the arguments of ``of_measurements``; the same on every rank.

    Raises:
        RuntimeError: Horovod runs with a single rank.
        ImportError: horovod.torch or mpi4py is not there.
    """
    import horovod.torch as hvd

    if hvd.size() < 2:
        raise RuntimeError("measuring takes at least two ranks: mpirun -np 2 hvd-compress advise --measure ...")
    latency = _ping()
    points: dict[str, dict[int, float]] = {}
    busy, slow = {}, []
    computed = _agreed(_blocks(0.05))
    for kind in (ALLREDUCE, HALF, ALLGATHER):
        start = _starter(kind)
        points[kind] = {}
        for nbytes in SIZES:
            points[kind][nbytes] = _timed(partial(start, nbytes), limit, share)
            if points[kind][nbytes] > most:
                break
        if kind != HALF:
            nbytes = max((n for n, seconds in points[kind].items() if seconds <= limit), default=SIZES[0])
            seconds, rate = _while_computing(partial(start, nbytes), points[kind][nbytes], limit, share)
            busy[kind] = max(1.0, seconds / points[kind][nbytes])
            slow.append(max(1.0, computed / rate))
    busy[HALF], busy[BROADCAST] = busy[ALLREDUCE], busy[ALLGATHER]
    start = _starter(ALLREDUCE)

    def many() -> Callable[[], object]:
        started = [start(4, f".{i}") for i in range(TENSORS)]
        return lambda: [finish() for finish in started]

    one, all_ = _timed(lambda: start(4), limit, share), _timed(many, limit, share)
    return {
        "workers": hvd.size(),
        "latency": latency,
        "points": points,
        "per_tensor": max(0.0, (all_ - one) / TENSORS),
        "busy": busy,
        "slowdown": median(slow),
        "per_gradient": measure_driver(share, max(1, round(DRIVER_TURNS * limit))),
    }


Finish = Callable[[], object]


def _starter(kind: str) -> Callable[..., Finish]:
    """Return a function that starts a collective of so many bytes, and returns what waits for it or tells when it is
    done."""
    import horovod.torch as hvd
    import torch

    arrays: dict[int, torch.Tensor] = {}
    dtype = {ALLREDUCE: torch.float32, HALF: torch.float16, ALLGATHER: torch.uint8}[kind]

    def start(nbytes: int, suffix: str = "") -> Finish:
        array = arrays.setdefault(nbytes, torch.zeros(nbytes // dtype.itemsize, dtype=dtype))
        name = f"hvd_compress.measure.{kind}.{nbytes}{suffix}"
        if kind == ALLGATHER:
            handle = hvd.allgather_async(array, name=name)
        else:
            handle = hvd.allreduce_async(array, name=name, op=hvd.Sum)
        return _Finish(handle)

    return start


class _Finish:
    """Waits for a collective of Horovod's when it is called."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __call__(self) -> object:
        import horovod.torch as hvd

        return hvd.synchronize(self._handle)

    def done(self) -> bool:
        import horovod.torch as hvd

        return bool(hvd.poll(self._handle))


def _agreed(value: float) -> float:
    """Return the mean over the ranks."""
    import horovod.torch as hvd

    return float(sum(hvd.allgather_object(value)) / hvd.size())


def _repetitions(seconds: float, limit: float) -> int:
    return min(9, max(1, int(limit / seconds)))


def _timed(start: Callable[[], Finish], limit: float, share: float) -> float:
    """Return the seconds from start to finish; the same on every rank, all of which take part as often.

    Of what is quick the median of the fastest ``share``. Of what is slow the network decides, and the mean counts: on
    TCP a lost packet now and then costs 200 ms, which a median hides and a training pays.
    """

    def once() -> float:
        time.sleep(min(PAUSE, limit))
        began = time.perf_counter()
        start()()
        return time.perf_counter() - began

    first = _agreed(once())
    if first > limit * SLOW:
        return first
    slow = first > limit / 5
    times = [once() for _ in range(_repetitions(first, SLOW * limit if slow else limit))]  # the name is known by now
    return _agreed(mean(times) if slow else median(fastest(times, share)))


def _while_computing(start: Callable[[], Any], expected: float, limit: float, share: float) -> tuple[float, float]:
    """Return the median seconds of a collective while the rank computes, and the blocks of computation a second
    meanwhile."""
    found = []
    block = _block()
    for _ in range(_repetitions(expected, 2 * limit)):
        time.sleep(min(PAUSE, limit))
        began = time.perf_counter()
        finish, count = start(), 0
        while not finish.done():
            block()
            count += 1
        seconds = time.perf_counter() - began
        finish()
        found.append((seconds, count / seconds))
    times, rates = zip(*fastest(found, share), strict=True)
    return _agreed(median(times)), _agreed(median(rates))


def _block() -> Callable[[], object]:
    """Return a little computation: a product of matrices and a pass over memory, some 0.3 ms on one core."""
    import torch

    a, b, c = torch.ones(192, 192), torch.ones(192, 192), torch.ones(1 << 19)
    return lambda: (torch.mm(a, b), c.add_(1.0))


def _blocks(seconds: float) -> float:
    """Return how many blocks of computation a second there are when nothing is communicated."""
    block, count, began = _block(), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        block()
        count += 1
    return count / (time.perf_counter() - began)


def _ping() -> float:
    """Return the seconds of a small message between the first two ranks, one way, through MPI."""
    from mpi4py import MPI

    world, times = MPI.COMM_WORLD, []
    message = bytearray(8)
    if world.rank < 2:
        other = 1 - world.rank
        for _ in range(50):
            began = time.perf_counter()
            world.Sendrecv_replace(message, dest=other, source=other)
            times.append(time.perf_counter() - began)
    seconds: float = world.bcast(median(times) if world.rank == 0 else None)
    return seconds
