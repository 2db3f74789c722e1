"""Exact top-k sparsification with error feedback (Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018)."""

from __future__ import annotations

from typing import ClassVar

from hvd_compress.algorithms.aggregation import aggregate
from hvd_compress.algorithms.selection import largest
from hvd_compress.compressor import compressor_dataclass
from hvd_compress.exchange import Bucket, Exchange
from hvd_compress.sparsifier import Sparsifier


@compressor_dataclass
class TopK(Sparsifier):
    """Send the k elements of largest magnitude, exactly: the selection of ``torch.topk`` but for ties.

    1. A sample of the magnitudes gives a threshold that about 1.2 to 1.6 k elements exceed.
    2. One fused pass adds the memory, takes the elements above the threshold out, and of these keeps the k largest
       (of equal ones those with the lowest index).
    3. Positions and values are all-gathered, or summed on their way (``aggregate``); the result is the workers' mean.

    Tuning: start with ``ratio=0.01``; 0.001 works for most networks with a warm-up (``schedules.WarmUp``).

    >>> TopK(0.001, wire="bfloat16")
    TopK(ratio=0.001, wire='bfloat16')
    """

    name: ClassVar[str] = "topk"
    runs_on_devices: ClassVar[bool] = True

    def exchange(self, bucket: Bucket) -> Exchange:
        _, k = self.target(bucket)
        indices, values = largest(bucket, k)
        return (yield from aggregate(self, bucket, k, indices, values))
