"""Compressors of several rounds, to test drivers with: whatever the real ones need of them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

import hvd_compress
from hvd_compress.exchange import AllReduce, Broadcast, Bucket, Exchange


@hvd_compress.compressor_dataclass
class TwoRounds(hvd_compress.Compressor):
    """Scales by the common maximum, as the quantizers do: an all-reduce MAX, then a SUM."""

    name: ClassVar[str] = "two-rounds"
    schedule = (AllReduce, AllReduce)

    def exchange(self, bucket: Bucket) -> Exchange:
        largest = np.abs(bucket.values).max()
        # not NaN, of which a maximum may lose sight
        told = np.array([largest if bucket.finite and np.isfinite(largest) else np.inf], np.float32)
        norm = yield AllReduce(told, op="max")
        if not np.isfinite(norm).all():
            raise hvd_compress.NonFiniteGradient
        codes = np.rint(bucket.values / max(float(norm[0]), 1e-30) * 32767).astype(np.int32)
        total = yield AllReduce(codes, op="sum")
        return (total * (float(norm[0]) / 32767 / bucket.workers)).astype(np.float32)


@hvd_compress.compressor_dataclass
class LeaderFirst(hvd_compress.Compressor):
    """A leader's indices are broadcast, and everybody's values at them summed."""

    name: ClassVar[str] = "leader-first"
    schedule = (Broadcast, AllReduce)
    error_feedback: bool = True  # type: ignore[misc]

    def exchange(self, bucket: Bucket) -> Exchange:
        k = max(1, bucket.size // 10)
        mine = np.argpartition(-np.abs(bucket.values), k - 1)[:k].astype(np.int32)
        indices = yield Broadcast(mine, root=bucket.step % bucket.workers)
        values = bucket.values[indices].copy()
        bucket.values[indices] = 0
        total = yield AllReduce(values)
        mean = bucket.decoded
        mean[:] = 0
        mean[indices] = total / bucket.workers
        return mean
