"""What collectives cost on a cluster: an alpha-beta model under Horovod.

The time of a collective is a number of messages one after the other, each of latency alpha, plus the bytes that pass
through a worker's link, each of time beta (Hockney's model; the counts are those of Thakur, Rabenseifner and Gropp,
"Optimization of collective communication operations in MPICH", IJHPCA 2005). Horovod adds an overhead to each: a
tensor waits for the next cycle, and the workers agree on what is ready. A measured beta depends on the size: buffers
hide a small message, and TCP loses packets in a large one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from hvd_compress.topology import ALL, NODE, PEERS

ALLREDUCE, HALF, ALLGATHER, BROADCAST = "allreduce", "allreduce float16", "allgather", "broadcast"
ALLTOALL, REDUCESCATTER = "alltoall", "reducescatter"
KINDS = (ALLREDUCE, HALF, ALLGATHER, BROADCAST, ALLTOALL, REDUCESCATTER)

GATHER_SHORT = 51_200
"""Bytes, of all workers together, up to which Open MPI gathers in log2(N) messages rather than around the ring."""


def messages(kind: str, workers: int, nbytes: float) -> int:
    """Return the number of messages, one after the other, of a collective of ``nbytes`` a worker.

    An all-reduce takes the ring, 2 (N - 1), or where that is cheaper (``Cluster.seconds`` compares) recursive
    doubling; this is the ring's number. An all-to-all and a reduce-scatter take N - 1. An all-gather takes N - 1, or
    log2 N when all payloads together are small.
    """
    if kind == BROADCAST or (kind == ALLGATHER and nbytes * workers <= GATHER_SHORT):
        return math.ceil(math.log2(workers))
    return (workers - 1) * (2 if kind in (ALLREDUCE, HALF) else 1)


def volume(kind: str, workers: int) -> float:
    """Return how many times its ``nbytes`` pass through a worker's link, in each direction.

    >>> [volume(kind, 8) for kind in ("allreduce", "allgather", "broadcast")]
    [1.75, 7, 3]
    """
    if kind == ALLGATHER:
        return workers - 1
    if kind == BROADCAST:
        return math.ceil(math.log2(workers))
    return (2 if kind in (ALLREDUCE, HALF) else 1) * (workers - 1) / workers


Curve = tuple[tuple[float, float], ...]
"""Bytes, and the seconds in which they pass through a worker's link in one direction; ascending."""


@dataclass(frozen=True)
class Cluster:
    """The constants of a cluster, in seconds."""

    latency: float
    """The time of a message, without its bytes."""
    link: Mapping[str, Curve]
    """The time of bytes on a worker's link, for each kind of collective."""
    overhead: float = 0.001
    """The time that Horovod adds to a collective: its cycle, and the agreement."""
    per_tensor: float = 0.0
    """The time that each tensor costs the thread that trains, when it is handed to Horovod."""
    per_gradient: float = 0.0
    """The time that the driver costs it beyond that, when a gradient comes and there is a compressor."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """How many times longer a collective takes while the worker computes."""
    slowdown: float = 1.0
    """How many times longer computation takes while a collective is under way."""
    cores: float = math.inf
    """The processors of a worker; its two threads and Horovod's share them."""
    ranks_per_node: int = 1
    """How many workers share a node, and with it the link to the other nodes."""
    local: Cluster | None = None
    """The constants within a node; ``overhead`` and what follows it are those of the whole."""

    @classmethod
    def of_link(cls, bandwidth: float, latency: float, overhead: float = 0.001) -> Cluster:
        """Return the constants that follow from what a link can do: ``bandwidth`` in bits a second, ``latency`` and
        ``overhead`` in seconds."""
        return cls(latency, dict.fromkeys(KINDS, ((1.0, 8 / bandwidth),)), overhead)

    def with_nodes(self, ranks_per_node: int, bandwidth: float, latency: float) -> Cluster:
        """Return this cluster with so many workers on a node, among whom ``bandwidth`` and ``latency`` are as in
        ``of_link``."""
        return replace(self, ranks_per_node=ranks_per_node, local=Cluster.of_link(bandwidth, latency))

    def nodes(self, workers: int) -> int:
        """Return on how many nodes so many workers are."""
        return -(-workers // self.ranks_per_node)

    def transfer(self, kind: str, nbytes: float, workers: int, scope: str = ALL) -> float:
        """Return the seconds of a collective, without Horovod's overhead, of ``nbytes`` handed over by each worker.

        Among all of several nodes, a ring passes every node's link once, as if each had one worker. The peers of all
        places use the node's link at the same time.

        >>> Cluster.of_link(8e9, latency=1e-5).transfer("allgather", 1e6, workers=4)  # 3 (alpha + 1e6 beta)
        0.00303
        >>> nodes = Cluster.of_link(8e9, latency=1e-5).with_nodes(4, bandwidth=80e9, latency=1e-6)
        >>> [round(nodes.transfer("allgather", 1e6, 8, scope), 6) for scope in ("all", "node", "peers")]
        [0.00707, 0.000303, 0.00401]
        """
        if self.local is not None and (scope == NODE or workers <= self.ranks_per_node):
            return self.local.transfer(kind, nbytes, 1 if scope == PEERS else min(workers, self.ranks_per_node))
        if scope == PEERS:
            nbytes, workers = nbytes * self.ranks_per_node, self.nodes(workers)
        if workers < 2:
            return 0.0
        once = passing(self.link[kind], nbytes)
        seconds = messages(kind, workers, nbytes) * self.latency + volume(kind, workers) * once
        if kind in (ALLREDUCE, HALF):
            seconds = min(seconds, math.ceil(math.log2(workers)) * (self.latency + once))
        return seconds

    def agreement(self, workers: int) -> float:
        """Return Horovod's overhead: as between two workers, and a message up and one down for each doubling."""
        return self.overhead + 2 * max(0, math.ceil(math.log2(workers)) - 1) * self.latency

    def as_json(self) -> dict[str, Any]:
        """Return all constants, as numbers that JSON has: None for processors without limit."""
        local = self.local.as_json() if self.local is not None else None
        return {**asdict(self), "cores": self.cores if math.isfinite(self.cores) else None, "local": local}


def passing(curve: Curve, nbytes: float) -> float:
    """Return the seconds in which so many bytes pass: along a line from point to point, and beyond the last along the
    last line.

    >>> [passing(((10.0, 1.0), (20.0, 3.0)), n) for n in (5, 15, 30)]
    [0.5, 2.0, 5.0]
    """
    before = (0.0, 0.0)
    for number, point in enumerate(curve):
        if nbytes <= point[0] or number + 1 == len(curve):
            slope = (point[1] - before[1]) / (point[0] - before[0])
            return before[1] + (nbytes - before[0]) * slope
        before = point
    raise ValueError("a curve needs a point")


def of_measurements(
    workers: int,
    latency: float,
    points: Mapping[str, Mapping[int, float]],
    per_tensor: float,
    busy: Mapping[str, float],
    slowdown: float,
    per_gradient: float = 0.0,
) -> Cluster:
    """Return the constants that follow from the seconds that collectives of some sizes took between so many workers.

    The overhead is what the smallest take beyond their messages' latency, a median over the kinds; the rest of each
    larger one is bytes. A kind that was not measured is as an all-gather; a driver that was not costs nothing.
    """
    overhead = median(
        max(0.0, seconds[min(seconds)] - messages(kind, workers, min(seconds)) * latency)
        for kind, seconds in points.items()
    )
    link = {}
    for kind, seconds in points.items():
        curve, most = [], 0.0
        for nbytes in sorted(seconds):
            rest = seconds[nbytes] - overhead - messages(kind, workers, nbytes) * latency
            most = max(most, rest / volume(kind, workers))
            curve.append((float(nbytes), most))
        link[kind] = tuple(curve)
    for kind in KINDS:
        link.setdefault(kind, link[ALLGATHER])
    return Cluster(latency, link, overhead, per_tensor, per_gradient, dict(busy), slowdown)
