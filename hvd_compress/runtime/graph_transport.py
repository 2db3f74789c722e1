"""Collectives that somebody else carries out: what is known of them before there is data, and their results after."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.compressor import Collectives, Compressor
from hvd_compress.exchange import AllGather, AllReduce, AllToAll, Array, Bucket, Collective, ReduceScatter, sent_array
from hvd_compress.runtime.transport import result_alone, shaped
from hvd_compress.topology import ALL, Topology


@dataclass(eq=False)
class PendingCollective:
    """A collective of an exchange that the graph carries out; its result is filled in."""

    collective: Collective
    result: Array | None = None

    @property
    def array(self) -> Array:
        """Return what this worker puts in."""
        return sent_array(self.collective)


class GraphTransport:
    """The transport of an exchange whose collectives are somebody else's business."""

    def __init__(self, rank: int, topology: Topology, mpi: tuple[int, ...] | None = None) -> None:
        self.rank = rank
        self.workers = topology.workers
        self.topology = topology
        self.simulated = False
        self.mpi = mpi

    def start(self, collective: Collective, name: str) -> PendingCollective:
        return PendingCollective(collective)

    def done(self, handle: PendingCollective) -> bool:
        return handle.result is not None

    def wait(self, handle: PendingCollective) -> None:
        if handle.result is None:
            raise RuntimeError("the graph has not delivered this collective's result yet")

    def result(self, handle: PendingCollective) -> Array:
        self.wait(handle)
        assert handle.result is not None
        members = self.topology.members(handle.collective.scope, self.rank)
        if self.topology.alone(handle.collective.scope, self.rank):
            return result_alone(handle.collective)
        return shaped(handle.collective, handle.result, len(members))


class CollectiveSpec(NamedTuple):
    """What a graph must know of a collective before there is data."""

    kind: type[Collective]
    dtype: np.dtype[Any]
    op: str
    scope: str = ALL


def answer(collective: Collective, rank: int, topology: Topology) -> Array:
    """Return what a collective would give a worker if all others handed over the same as this one; to try an exchange
    out."""
    sent, members = sent_array(collective), topology.members(collective.scope, rank)
    if isinstance(collective, AllGather):
        return np.stack([sent] * len(members))
    if isinstance(collective, AllToAll):
        return np.stack([sent[members.index(rank)]] * len(members))
    if isinstance(collective, ReduceScatter):
        place = members.index(rank)
        return sent[place].copy() if place < len(sent) else sent[0, :0]
    return sent.copy()


def nothing(spec: CollectiveSpec, rank: int, topology: Topology) -> Array:
    """Return what a worker hands over to a collective whose result nobody will look at."""
    rows = (len(topology.members(spec.scope, rank)),) if spec.kind in (AllToAll, ReduceScatter) else ()
    return np.zeros((*rows, 1), spec.dtype)


def variants(found: Sequence[CollectiveSpec]) -> list[list[CollectiveSpec]]:
    """Return what collectives that were ``found`` may be with another number of workers: sums of integers may need
    wider ones, or narrower."""
    integers: list[np.dtype[Any]] = [np.dtype(np.int32), np.dtype(np.int64)]
    choices = [
        [spec._replace(dtype=dtype) for dtype in integers]
        if spec.kind is AllReduce and spec.dtype in integers
        else [spec]
        for spec in found
    ]
    return [list(specs) for specs in itertools.product(*choices)]


def name_of(specs: Sequence[CollectiveSpec]) -> str:
    """Return what tells a variant from the others, the same on all workers."""
    return "-".join(spec.dtype.name for spec in specs)


def try_out(compressor: Compressor, bucket: Bucket, declared: Collectives) -> list[CollectiveSpec]:
    """Return the collectives that an exchange yields, found by running it on made-up data in a bucket made for it.

    Raises:
        TypeError: they are not those ``declared``.
    """
    bucket.memory.begin([np.zeros(bucket.size, np.float32)])  # what one worker makes of zeros may be any other's
    exchange = compressor.exchange(bucket)
    found: list[CollectiveSpec] = []
    collective = next(exchange, None)
    while collective is not None:
        spec = CollectiveSpec(
            type(collective), sent_array(collective).dtype, getattr(collective, "op", ""), collective.scope
        )
        found.append(spec)
        if len(found) == len(declared):
            break
        collective = exchange.send(answer(collective, bucket.rank, bucket.topology))
    exchange.close()
    if tuple(entry.kind for entry in found) != declared:
        raise TypeError(f"{type(compressor).__name__}.exchange does not yield what its schedule declares")
    return found
