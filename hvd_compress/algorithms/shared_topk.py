"""Top-k at indices that all workers share (ScaleCom: Chen et al., NeurIPS 2020, arXiv 2104.11125)."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np

from hvd_compress.algorithms.selection import largest
from hvd_compress.codecs.index_set import IndexSetFormat
from hvd_compress.compressor import compressor_dataclass
from hvd_compress.exchange import AllReduce, Broadcast, Bucket, Exchange, maximum
from hvd_compress.kernels import CorruptPayload, Float32, UInt32
from hvd_compress.sparsifier import Selective
from hvd_compress.validation import require_number


@compressor_dataclass
class SharedTopK(Selective):
    """Send the values at the indices of one worker's k largest elements, another worker's in each step.

    1. The leader, worker ``step mod N``, broadcasts the indices of its k largest elements of memory + gradient
       (cyclic local top-k, section 2.2).
    2. The values that all workers have there are all-reduced: k numbers, whatever N is.
    3. The memory keeps what is at other indices; through a low-pass filter, if wanted (section 2.3).

    It rests on the workers' memories being alike, which makes the leader's largest elements large on all. Every worker
    leads every N steps, so that nothing waits for ever.

    Args:
        low_pass: beta of the filter, in (0, 1]: ``m = (1 - beta) m + beta (m + g - sent)``. Below 1 the memory moves
            slowly, which keeps large learning rates and batches stable, and what it does not take in is lost. 1: no
            filter, nothing is lost.

    Tuning: as ``TopK``; where workers see different data, a larger ratio. Try ``low_pass=0.1`` (the paper's) if
    training with large batches diverges at the beginning.

    >>> SharedTopK(0.001, low_pass=0.1)
    SharedTopK(ratio=0.001, low_pass=0.1)
    """

    name: ClassVar[str] = "shared-topk"
    runs_on_devices: ClassVar[bool] = True
    schedule = (AllReduce, Broadcast, AllReduce)
    signals = True

    _: KW_ONLY
    low_pass: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("low_pass", self.low_pass, "in (0, 1]", lambda beta: 0 < beta <= 1)
        if self.low_pass != 1 and not self.error_feedback:
            raise ValueError("low_pass filters the memory, and error_feedback=False has none")

    def exchange(self, bucket: Bucket) -> Exchange:
        kernels, leader = bucket.kernels, bucket.step % bucket.workers
        values = bucket.values
        yield from maximum(bucket, 0.0)
        size = max(bucket.size, 1)
        k = min(self.target(bucket)[1], size)
        layout = IndexSetFormat(size, k, signs=False)
        told = bucket.scratch("set", layout.nbytes, np.uint8)
        told[:] = 0
        chosen = bucket.scratch("values", k, np.float32)
        if bucket.rank == leader:
            indices, chosen = _filled(bucket, *largest(bucket, k), min(k, bucket.size))
            layout.encode(indices, chosen, 0.0, told)
        received, _, _ = layout.decode((yield Broadcast(told, leader)))
        if len(received) != min(k, bucket.size) and not bucket.tentative:
            raise CorruptPayload(f"{bucket.name}: {len(received)} shared indices, expected {min(k, bucket.size)}")
        bucket.target, bucket.sent = k, len(received)
        if bucket.rank != leader:
            chosen = chosen[: len(received)]
            kernels.take(values, received, chosen)
            kernels.restore(values, received, np.zeros(len(received), np.float32))
        held = bucket.memory.held_back()
        if self.low_pass != 1 and held is not None:
            values *= np.float32(self.low_pass)
            values += held * np.float32(1 - self.low_pass)
        sent = bucket.scratch("sent", k, np.float32)
        sent[len(received) :] = 0
        np.multiply(chosen, np.float32(1 / bucket.workers), out=sent[: len(received)])  # so that no sum overflows
        total = yield AllReduce(sent)
        if not kernels.all_finite(total[: len(received)]):
            raise CorruptPayload(f"{bucket.name}: the mean of values that are all finite is not")
        mean = bucket.decoded
        mean[:] = 0
        kernels.restore(mean, received, total[: len(received)])
        return mean


def _filled(bucket: Bucket, indices: UInt32, values: Float32, k: int) -> tuple[UInt32, Float32]:
    """Return k indices and values: those given, and where the leader has fewer that are not zero, some that are, at a
    random place, for the others' may not be."""
    if len(indices) == k:
        return indices, values
    free = np.setdiff1d(np.arange(bucket.size, dtype=np.uint32), indices, assume_unique=True)
    begin = bucket.key() % len(free)
    added = np.roll(free, -begin)[: k - len(indices)]
    order = np.argsort(np.concatenate([indices, added]), kind="stable")
    padded = np.concatenate([values, np.zeros(len(added), np.float32)])
    return np.concatenate([indices, added])[order], padded[order]
