"""What an exchange costs a worker's processor, measured on this machine, and what it hands to collectives."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hvd_compress import registry, schedules
from hvd_compress.cli import bench, catalogue, cluster
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather, Broadcast

PROXY = 262_144
"""Elements of the bucket with which sizes on the wire are found for numbers of workers that are not timed."""
SCALAR = 64
"""Up to so many bytes, what is sent is a norm or the like, whatever the bucket's size."""
GATHERED = (2, 8)
"""Numbers of payloads for which decoding is timed; it grows linearly with them."""
MOST_SIZES, LARGEST = 3, 8_000_000
"""So many sizes of buckets are timed, of at most so many elements; the costs of others follow from theirs."""
SPILL = 64 * 2**20
"""Bytes that are written before an exchange is timed: in training, the caches hold what the network has computed."""
LATE = 10**7
"""A step at which schedules have come to their end."""


@dataclass(frozen=True)
class CollectiveCost:
    """A collective: its kind, the bytes handed over, and the seconds of computation that come before it."""

    kind: str
    nbytes: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """Of one bucket's exchange; ``decode``: seconds after the last collective. ``error``: why it does not work."""

    rounds: tuple[CollectiveCost, ...]
    decode: float
    error: str = ""


@dataclass(frozen=True)
class Measured:
    """What was timed: an exchange among the first of ``GATHERED`` workers, and by how much decoding grows with each
    more of them. ``n`` is the bucket's size."""

    n: int
    base: Cost
    growth: float

    def scaled(self, n: int) -> Measured:
        """As if measured on a bucket of ``n`` elements: everything that grows, in proportion."""
        by = n / self.n
        rounds = tuple(
            CollectiveCost(r.kind, r.nbytes * by if r.nbytes > SCALAR else r.nbytes, r.seconds * by)
            for r in self.base.rounds
        )
        return Measured(n, Cost(rounds, self.base.decode * by), self.growth * by)

    def between(self, other: Measured, n: int) -> Measured:
        """Between this and a larger one, along a line."""
        share = (n - self.n) / (other.n - self.n)

        def mix(a: float, b: float) -> float:
            return a + share * (b - a)

        rounds = tuple(
            CollectiveCost(a.kind, mix(a.nbytes, b.nbytes), mix(a.seconds, b.seconds))
            for a, b in zip(self.base.rounds, other.base.rounds, strict=True)
        )
        return Measured(n, Cost(rounds, mix(self.base.decode, other.base.decode)), mix(self.growth, other.growth))

    def at(self, algorithm: Compressor, workers: int) -> Cost:
        """For another number of workers: sizes as the algorithm makes them, computation as measured."""
        try:
            sizes = wire(algorithm, min(self.n, PROXY), workers)
        except ValueError as error:
            return Cost((), 0.0, str(error))
        scale = self.n / min(self.n, PROXY)
        rounds = tuple(
            CollectiveCost(kind, nbytes * (scale if nbytes > SCALAR else 1), known.seconds)
            for (kind, nbytes), known in zip(sizes, self.base.rounds, strict=True)
        )
        return Cost(rounds, self.base.decode + self.growth * (workers - GATHERED[0]))


def compressors(names: Iterable[str] | None = None) -> dict[str, Compressor]:
    """Compressors by name, as they are once their schedules have come to their end.

    ``names`` are configurations that come with the package, registered compressors, or YAML files; by default all
    configurations, and the compressors that have none, but for those that have phases or lack a package.

    Raises:
        ValueError, TypeError, OSError: what ``bench.load`` raises.
    """
    files = catalogue.files()
    if names is not None:
        return {str(name): steady(bench.load(files.get(str(name), name))) for name in names}
    found = {}
    for name in sorted({*files, *registry.names()}):
        with suppress(ImportError):
            made = registry.from_config(files.get(name, name))
            if not bench.phased(made):
                found[name] = steady(made)
    return found


def steady(algorithm: Compressor) -> Compressor:
    """With the last value of every schedule."""
    changed: dict[str, Any] = {
        field.name: schedules.value_at(value, LATE)
        for field in dataclasses.fields(algorithm)
        if callable(value := getattr(algorithm, field.name))
    }
    return dataclasses.replace(algorithm, **changed)


def kind_of(collective: Any) -> str:
    """As ``cluster`` names it."""
    if isinstance(collective, AllGather):
        return cluster.ALLGATHER
    if isinstance(collective, Broadcast):
        return cluster.BROADCAST
    return cluster.HALF if collective.values.dtype == np.float16 else cluster.ALLREDUCE


def wire(algorithm: Compressor, n: int, workers: int) -> list[tuple[str, int]]:
    """Kind and bytes of every collective of a bucket of ``n`` elements.

    Raises:
        ValueError: the compressor does not work with so many workers.
    """
    exchange = bench.Step(bench.Inputs(n), algorithm, workers)
    return [(kind_of(collective), bench.array(collective).nbytes) for collective in exchange.compress()]


def measure(
    algorithms: Mapping[str, Compressor],
    n: int,
    rounds: int = 5,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    share: float = 1.0,
) -> dict[str, Measured]:
    """Time one exchange of each compressor on a bucket of ``n`` elements; medians over rounds in which each takes its
    turn, in random order; with a ``share`` below 1 of the fastest rounds. Inputs are as in ``bench``."""
    inputs = bench.Inputs(n)
    steps = {
        (name, workers): bench.Step(inputs, algorithm, workers)
        for name, algorithm in algorithms.items()
        for workers in (GATHERED if AllGather in algorithm.schedule else GATHERED[:1])
    }
    times: dict[tuple[str, int], list[list[float]]] = {key: [] for key in steps}
    sizes: dict[tuple[str, int], list[tuple[str, int]]] = {}
    order, spill = random.Random(0), np.zeros(SPILL // 4, np.float32)
    for number in progress(range(rounds + 1)):
        for key in order.sample(list(steps), len(steps)):
            inputs.restore(steps[key])
            spill += 1
            collectives, seconds = steps[key].run()
            if number:  # the first one pays for first touches
                times[key].append(seconds)
            sizes[key] = [(kind_of(collective), bench.array(collective).nbytes) for collective in collectives]
    found = {}
    for name in algorithms:
        first = [median(column) for column in zip(*bench.fastest(times[name, GATHERED[0]], share, sum), strict=True)]
        sent = zip(sizes[name, GATHERED[0]], first[:-1], strict=True)
        cost = Cost(tuple(CollectiveCost(kind, nbytes, seconds) for (kind, nbytes), seconds in sent), first[-1])
        growth = 0.0
        if (name, GATHERED[1]) in times:
            later = median(seconds[-1] for seconds in bench.fastest(times[name, GATHERED[1]], share, sum))
            growth = max(0.0, (later - cost.decode) / (GATHERED[1] - GATHERED[0]))
        found[name] = Measured(n, cost, growth)
    return found


def for_sizes(
    algorithms: Mapping[str, Compressor],
    sizes: Iterable[int],
    rounds: int = 5,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> dict[str, dict[int, Measured]]:
    """What exchanges of buckets of these sizes cost, by compressor and size; a few of the sizes are timed."""
    wanted = sorted(set(sizes))
    timed = chosen(wanted)
    known = [measure(algorithms, n, rounds, progress) for n in timed]
    found: dict[str, dict[int, Measured]] = {}
    for name in algorithms:
        line = [one[name] for one in known]
        found[name] = {n: _on(line, n) for n in wanted}
    return found


def chosen(sizes: Sequence[int]) -> list[int]:
    """Which of these ascending sizes to time: all if they are few, else the ends and the middle; none too large.

    >>> chosen([10, 20]), chosen([10, 20, 30, 40, 10**9])
    ([10, 20], [10, 30, 8000000])
    """
    if len(sizes) > MOST_SIZES:
        sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    return sorted({min(n, LARGEST) for n in sizes})


def _on(line: Sequence[Measured], n: int) -> Measured:
    """At ``n`` elements, from those measured at ascending sizes."""
    for low, high in itertools.pairwise(line):
        if low.n <= n <= high.n:
            return low.between(high, n)
    nearest = line[0] if n <= line[0].n else line[-1]
    return nearest if n == nearest.n else nearest.scaled(n)


def casts(n: int, rounds: int = 5) -> tuple[float, float]:
    """Seconds in which PyTorch makes float16 of ``n`` float32 elements, and back: Horovod's own compression."""
    import torch

    values = torch.from_numpy(bench.Inputs(n).original_gradient)
    forth, back = [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        half = values.half()
        middle = time.perf_counter()
        half.float()
        forth.append(middle - began)
        back.append(time.perf_counter() - middle)
    return median(forth[1:]), median(back[1:])
