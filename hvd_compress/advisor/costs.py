"""What an exchange costs a worker's processor, and what it hands to collectives: for any bucket, and any number of
workers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvd_compress.advisor import cluster
from hvd_compress.advisor.exchange_timing import Inputs, TimedExchange
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather, AllToAll, Broadcast, Collective, ReduceScatter, sent_array
from hvd_compress.topology import ALL, NODE, PEERS

PROXY = 262_144
"""Elements of the bucket with which sizes on the wire are found for numbers of workers that are not timed."""
SCALAR = 64
"""Up to so many bytes, what is sent is a norm or the like, whatever the bucket's size."""
GATHERED = (2, 8)
"""Numbers of payloads for which decoding is timed; it grows linearly with them."""


@dataclass(frozen=True)
class CollectiveCost:
    """A collective: its kind, the bytes handed over, and the seconds of computation that come before it."""

    kind: str
    nbytes: float
    seconds: float
    scope: str = ALL


@dataclass(frozen=True)
class ExchangeCost:
    """The cost of one bucket's exchange: its collectives, and the seconds of decoding after the last of them."""

    rounds: tuple[CollectiveCost, ...]
    decode: float
    error: str = ""
    """Why the exchange does not work, if it does not."""


@dataclass(frozen=True)
class MeasuredCost:
    """The cost of an exchange as it was timed."""

    n: int
    """The bucket's size."""
    base: ExchangeCost
    """The cost among the first of ``GATHERED`` workers."""
    growth: float
    """The seconds by which decoding grows with each worker more."""
    spread: float = 0.0
    """Half of the times that were measured lie within this fraction of their median."""

    def scaled(self, n: int) -> MeasuredCost:
        """Return the cost of a bucket of ``n`` elements: everything that grows does so in proportion."""
        by = n / self.n
        rounds = tuple(
            CollectiveCost(r.kind, r.nbytes * by if r.nbytes > SCALAR else r.nbytes, r.seconds * by)
            for r in self.base.rounds
        )
        return MeasuredCost(n, ExchangeCost(rounds, self.base.decode * by), self.growth * by, self.spread)

    def between(self, other: MeasuredCost, n: int) -> MeasuredCost:
        """Return the cost of ``n`` elements, on a line between this cost and that of a larger bucket."""
        share = (n - self.n) / (other.n - self.n)

        def mix(a: float, b: float) -> float:
            return a + share * (b - a)

        rounds = tuple(
            CollectiveCost(a.kind, mix(a.nbytes, b.nbytes), mix(a.seconds, b.seconds))
            for a, b in zip(self.base.rounds, other.base.rounds, strict=True)
        )
        base = ExchangeCost(rounds, mix(self.base.decode, other.base.decode))
        return MeasuredCost(n, base, mix(self.growth, other.growth), max(self.spread, other.spread))

    def at(self, algorithm: Compressor, workers: int) -> ExchangeCost:
        """Return the cost for another number of workers: sizes as the algorithm makes them, computation as measured."""
        try:
            sizes = collectives(algorithm, min(self.n, PROXY), workers)
        except ValueError as error:
            return ExchangeCost((), 0.0, str(error))
        scale = self.n / min(self.n, PROXY)
        rounds = tuple(
            CollectiveCost(kind, nbytes * (scale if nbytes > SCALAR else 1), known.seconds)
            for (kind, nbytes), known in zip(sizes, self.base.rounds, strict=True)
        )
        return ExchangeCost(rounds, self.base.decode + self.growth * (workers - GATHERED[0]))


def by_shares(between: ExchangeCost, n: int, share: int, copy: float) -> ExchangeCost:
    """Return the cost of ``TwoLevel`` on a bucket of ``n`` elements: its node's workers divide it into shares of
    ``share``, whose exchange with the other nodes costs ``between``; ``copy`` are the seconds of copying the bucket."""
    inner = (CollectiveCost(r.kind, r.nbytes, r.seconds, PEERS) for r in between.rounds)
    rounds = (
        CollectiveCost(cluster.REDUCESCATTER, 4.0 * n, copy, NODE),
        *inner,
        CollectiveCost(cluster.ALLGATHER, 4.0 * share, between.decode, NODE),
    )
    return ExchangeCost(rounds if not between.error else (), copy, between.error)


def interpolated(line: Sequence[MeasuredCost], n: int) -> MeasuredCost:
    """Return the cost of a bucket of ``n`` elements, from those measured at ascending sizes."""
    for low, high in itertools.pairwise(line):
        if low.n <= n <= high.n:
            return low.between(high, n)
    nearest = line[0] if n <= line[0].n else line[-1]
    return nearest if n == nearest.n else nearest.scaled(n)


def collectives(algorithm: Compressor, n: int, workers: int) -> list[tuple[str, int]]:
    """Return kind and bytes of every collective of a bucket of ``n`` elements.

    Raises:
        ValueError: the compressor does not work with so many workers.
    """
    return sizes_of(TimedExchange(Inputs(n), algorithm, workers).compress())


def sizes_of(exchanged: Sequence[Collective]) -> list[tuple[str, int]]:
    """Return kind, as ``cluster`` names it, and bytes of each of these collectives."""
    return [(_kind(collective), sent_array(collective).nbytes) for collective in exchanged]


def _kind(collective: Collective) -> str:
    if isinstance(collective, AllGather):
        return cluster.ALLGATHER
    if isinstance(collective, Broadcast):
        return cluster.BROADCAST
    if isinstance(collective, AllToAll):
        return cluster.ALLTOALL
    if isinstance(collective, ReduceScatter):
        return cluster.REDUCESCATTER
    return cluster.HALF if collective.values.dtype == np.float16 else cluster.ALLREDUCE
