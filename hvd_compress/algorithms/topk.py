"""Exact top-k sparsification with error feedback (Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.compressor import Sparsifier
from hvd_compress.exchange import AllGather, Bucket, Exchange
from hvd_compress.kernels import Float32, UInt32

SAMPLE_HITS = 160
"""Elements of a sample that should lie above the threshold it is to find: the threshold's count is then good to 8 %
(one standard deviation) whatever the ratio."""


def sample_size(size: int, ratio: float) -> int:
    """Elements to sample of a bucket of ``size``: enough hits, but not more than a quarter of a bucket, unless it is so
    small that reading all of it is quick."""
    return min(math.ceil(SAMPLE_HITS / ratio), max(size // 4, 16_384))


@dataclass(frozen=True, eq=False, repr=False)
class TopK(Sparsifier):
    """Send the k elements of largest magnitude, exactly: the selection of ``torch.topk`` but for ties.

    1. A sample of the magnitudes gives a threshold that about 1.2 to 1.6 k elements exceed.
    2. One fused pass adds the memory, takes the elements above the threshold out, and of these keeps the k largest
       (of equal ones those with the lowest index).
    3. Positions and values are all-gathered; the mean of the workers' payloads is the result.

    Tuning: start with ``ratio=0.01``; 0.001 works for most networks with a warm-up (``schedules.WarmUp``).

    >>> TopK(0.001, wire="bfloat16")
    TopK(ratio=0.001, wire='bfloat16')
    """

    name: ClassVar[str] = "topk"

    def exchange(self, bucket: Bucket) -> Exchange:
        _, k = self.target(bucket)
        indices, values = largest(bucket, k)
        layout = SparseFormat(bucket.size, -(-k // 8) * 8, self.wire)
        bucket.target, bucket.sent = k, len(indices)
        gathered = yield send(bucket, layout, indices, values, self.error_feedback)
        return layout.decode(bucket.kernels, gathered, 1 / bucket.workers, bucket.decoded)


def largest(bucket: Bucket, k: int) -> tuple[UInt32, Float32]:
    """Take the ``k`` largest non-zero elements out of ``bucket.values``: ascending indices, and values (workspaces)."""
    # a larger sample bounds the k-th element more tightly, and fewer candidates have to be sorted out
    sample, moments = bucket.sample(max(sample_size(bucket.size, k / bucket.size), bucket.size // 256))
    threshold = 0.0
    if moments.finite and moments.count:
        expected = k * moments.count / bucket.size
        if moments.count < bucket.size:
            expected = 1.05 * expected + 6 * math.sqrt(expected) + 8  # elements of a line are not independent
        rank = min(moments.count, math.ceil(expected))
        kth = np.float32(bucket.kernels.kth_largest(sample, rank))
        threshold = float(np.nextafter(kth, np.float32(0)))  # "exceeds" is strict: let the k-th itself through
    selection, indices, values = bucket.select(threshold, k)
    if selection.finite and selection.kept < k and threshold > 0:
        bucket.memory.restore(indices, values)  # the sample was too optimistic: once more, with everything
        _, indices, values = bucket.select(0.0, k)
    return indices, values


def send(bucket: Bucket, layout: SparseFormat, indices: UInt32, values: Float32, error_feedback: bool) -> AllGather:
    """The all-gather of these entries; what a 16-bit wire rounds off goes back into the bucket's values."""
    payload = bucket.scratch("payload", layout.nbytes, np.uint8)
    layout.encode(bucket.kernels, indices, values, bucket.values if error_feedback else None, payload)
    return AllGather(payload)
