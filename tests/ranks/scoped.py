"""Compressors with collectives of every scope, to test transports with; nothing is compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

import hvd_compress
from hvd_compress.exchange import AllGather, AllReduce, AllToAll, Broadcast, Bucket, Exchange, ReduceScatter
from hvd_compress.topology import Topology


@hvd_compress.compressor_dataclass
class Mesh(hvd_compress.PhasedCompressor):
    """Sums in the node, then among peers, and hands the sums round: every collective in some scope.

    ``per_node`` ranks form a node; 0: as the launcher says.
    """

    name: ClassVar[str] = "mesh"
    schedule = (ReduceScatter, AllReduce, Broadcast, AllGather, AllToAll)
    asks_for_nodes = True
    per_node: int = 0

    def topology(self, workers: int, found: Callable[[], Topology]) -> Topology:
        return Topology.of_blocks(workers, self.per_node) if self.per_node else found()

    def plans(self, bucket: Bucket) -> dict[str, hvd_compress.Collectives]:
        return {"": self.schedule}

    def plan(self, bucket: Bucket) -> str:
        return ""

    def exchange(self, bucket: Bucket) -> Exchange:
        topology, rank = bucket.topology, bucket.rank
        shares = topology.shares
        n = -(-bucket.size // shares)
        rows = np.zeros(shares * n, np.float32)
        rows[: bucket.size] = bucket.values
        part = yield ReduceScatter(rows.reshape(shares, n), scope="node")
        mine = np.zeros(n, np.float32)
        mine[: len(part)] = part
        total = (yield AllReduce(mine, scope="peers")).copy()
        leader = yield Broadcast(np.array([rank], np.int32), root=shares - 1, scope="node")
        assert leader[0] in (topology.members("node", rank)[shares - 1], rank)  # (in a trial this rank gives all)
        payload = bucket.payload(hvd_compress.HEADER_BYTES + 4 * n)
        payload[hvd_compress.HEADER_BYTES :] = total.view(np.uint8)
        gathered = (yield AllGather(payload, scope="node"))[:shares, hvd_compress.HEADER_BYTES :].copy()
        mean = gathered.reshape(-1).view(np.float32)[: bucket.size] / np.float32(bucket.workers)
        crossed = np.zeros((bucket.workers, 2), np.uint8)
        crossed[:, 0], crossed[:, 1] = rank, np.arange(bucket.workers)
        received = yield AllToAll(crossed)
        assert received[:, 0].tolist() == list(range(bucket.workers))
        assert (received[:, 1] == rank).all()
        return mean.astype(np.float32)
