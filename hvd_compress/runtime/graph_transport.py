"""Collectives that somebody else carries out: what is known of them before there is data, and their results after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.compressor import Collectives, Compressor
from hvd_compress.exchange import AllGather, Array, Bucket, Collective


@dataclass(eq=False)
class PendingCollective:
    """A collective of an exchange that the graph carries out; its result is filled in."""

    collective: Collective
    result: Array | None = None

    @property
    def array(self) -> Array:
        """Return what this worker puts in."""
        return self.collective.payload if isinstance(self.collective, AllGather) else self.collective.values


class GraphTransport:
    """The transport of an exchange whose collectives are somebody else's business."""

    def __init__(self, rank: int, workers: int, mpi: tuple[int, ...] | None = None) -> None:
        self.rank = rank
        self.workers = workers
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
        result, sent = handle.result, handle.array
        assert result is not None
        if not isinstance(handle.collective, AllGather):
            return result.reshape(sent.shape)
        return result.reshape(self.workers, -1) if result.size == self.workers * sent.size else result


class CollectiveSpec(NamedTuple):
    """What a graph must know of a collective before there is data."""

    kind: type[Collective]
    dtype: np.dtype[Any]
    op: str


def try_out(compressor: Compressor, bucket: Bucket, declared: Collectives) -> list[CollectiveSpec]:
    """Return the collectives that an exchange yields, found by running it on made-up data in a bucket made for it.

    Raises:
        TypeError: they are not those ``declared``.
    """
    bucket.memory.begin([np.random.default_rng(0).standard_normal(bucket.size, np.float32)])
    exchange = compressor.exchange(bucket)
    found: list[CollectiveSpec] = []
    collective = next(exchange, None)
    while collective is not None:
        array = PendingCollective(collective).array
        found.append(CollectiveSpec(type(collective), array.dtype, getattr(collective, "op", "")))
        if len(found) == len(declared):
            break
        copies = np.stack([array] * bucket.workers) if isinstance(collective, AllGather) else array.copy()
        collective = exchange.send(copies)
    exchange.close()
    if tuple(entry.kind for entry in found) != declared:
        raise TypeError(f"{type(compressor).__name__}.exchange does not yield what its schedule declares")
    return found
