"""Sixteen bits an element: the mildest compression."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import ClassVar, Final, Literal

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.compressor import Collectives, Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, AllReduce, AllToAll, Bucket, Exchange
from hvd_compress.kernels import WIRES, CorruptPayload, Float32, UInt16
from hvd_compress.sparsifier import ALL_GATHER, REDUCE_SCATTER
from hvd_compress.validation import require_choice

ALL_REDUCE: Final = "all-reduce"
DEFAULT: Final = "default"
SCHEDULES: dict[str, Collectives] = {
    ALL_REDUCE: (AllReduce,),
    ALL_GATHER: (AllGather,),
    REDUCE_SCATTER: (AllToAll, AllGather),
}
"""The collectives of each way in which the workers' values come together."""
DEFAULTS = {"bfloat16": ALL_GATHER, "float16": ALL_REDUCE}
INFINITE = {"bfloat16": 2.0**128 - 2.0**119, "float16": 65520.0}
"""Magnitudes from which on a float32 is rounded to infinity."""


@compressor_dataclass
class Half(Compressor):
    """Send every element in 16 bits.

    How the workers' values come together, ``aggregate``, decides what the sum is carried in, and for how many workers
    it pays. ``d`` is the number of elements and N that of workers:

    - ``"all-reduce"``, of float16 only (Horovod has no all-reduce of bfloat16 under PyTorch): the sum is float16, and
      each addition rounds to 11 bits. A worker receives ``4 d (N-1) / N`` bytes, half of uncompressed for any N. Every
      worker divides by N first, so that no sum overflows while every worker's magnitudes are at most 65,504.
    - ``"all-gather"``: every worker sums all values in float32, and nothing but the values is rounded. A worker
      receives ``2 d (N-1)`` bytes: up to 4 workers that is no more than uncompressed.
    - ``"reduce-scatter"``: a worker sums the values of its N-th of the elements in float32, and all-gathers their mean
      in 16 bits, which rounds a second time. A worker receives as much as with ``"all-reduce"``.

    Magnitudes that are too large for the 16 bits (float16: above 65,504) make a step that is not finite on any worker
    (``nonfinite``); with ``"all-reduce"`` that is a sum which is too large. A ``GradScaler`` handles it as usual.

    Args:
        dtype: ``"bfloat16"`` or ``"float16"``.
        aggregate: as above; ``"default"`` is ``"all-gather"`` for bfloat16 and ``"all-reduce"`` for float16.

    Tuning: bfloat16 needs no loss scaling; float16 is the more exact for gradients within its range. For more than 4
    workers take float16, or bfloat16 with aggregate="reduce-scatter".

    >>> Half(dtype="float16")
    Half(dtype='float16')
    >>> Half(aggregate="reduce-scatter")
    Half(aggregate='reduce-scatter')
    """

    name: ClassVar[str] = "half"
    runs_on_devices: ClassVar[bool] = True

    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    _: KW_ONLY
    aggregate: Literal["default", "all-reduce", "all-gather", "reduce-scatter"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("dtype", self.dtype, WIRES[1:])
        require_choice("aggregate", self.aggregate, (DEFAULT, *SCHEDULES))
        if self.way == ALL_REDUCE and self.dtype == "bfloat16":
            raise ValueError(
                "aggregate='all-reduce' needs dtype='float16', which Horovod can sum; bfloat16 is summed in float32, "
                "with aggregate='reduce-scatter' or 'all-gather'"
            )

    @property
    def way(self) -> str:
        """How the workers' values come together."""
        return DEFAULTS[self.dtype] if self.aggregate == DEFAULT else self.aggregate

    @property
    def schedule(self) -> Collectives:  # type: ignore[override]
        return SCHEDULES[self.way]

    def exchange(self, bucket: Bucket) -> Exchange:
        exchanges = {ALL_REDUCE: self._all_reduced, ALL_GATHER: self._all_gathered, REDUCE_SCATTER: self._by_owners}
        return exchanges[self.way](bucket)

    def _all_reduced(self, bucket: Bucket) -> Exchange:
        values, halves = bucket.values, bucket.device_scratch("halves", bucket.size, np.float16)
        values *= np.float32(1 / bucket.workers)
        bucket.kernels.narrow(values, self._wire, bucket.kernels.view(halves, np.uint16))
        mean = yield AllReduce(halves, op="sum")
        bucket.decoded[:] = mean
        return bucket.decoded

    def _all_gathered(self, bucket: Bucket) -> Exchange:
        size, codec = bucket.size, header.DENSE + self._wire
        payload = bucket.payload(header.NBYTES + 2 * size, codec=codec)
        self._narrow(bucket, payload[header.NBYTES :].view(np.uint16))
        gathered = yield AllGather(payload)
        header.check(gathered, codec=codec, elements=size, capacity=0)
        words = np.ascontiguousarray(gathered[:, header.NBYTES :]).view(np.uint16)
        return self._decoded(bucket, words, 1 / bucket.workers)

    def _by_owners(self, bucket: Bucket) -> Exchange:
        """Let each worker sum one region, an N-th of the elements, the last ones filled up with zeros."""
        size, workers, codec = bucket.size, bucket.workers, header.DENSE_REGION + self._wire
        span, kernels = -(-size // workers), bucket.kernels
        words = bucket.device_scratch("words", workers * span, np.uint16)
        self._narrow(bucket, words[:size])
        words[size:] = 0
        received = yield AllToAll(kernels.view(words, np.uint8).reshape(workers, 2 * span))
        mean = bucket.device_scratch("region", span, np.float32)
        kernels.accumulate_dense(kernels.view(received, np.uint16), self._wire, 1 / workers, mean)
        payload = bucket.payload(header.NBYTES + 2 * span, codec=codec)
        kernels.narrow(mean, self._wire, payload[header.NBYTES :].view(np.uint16))
        gathered = yield AllGather(payload)
        header.check(gathered, codec=codec, elements=size, capacity=0)
        means = np.ascontiguousarray(gathered[:, header.NBYTES :]).reshape(1, -1).view(np.uint16)
        return self._decoded(bucket, means[:, :size], 1.0)

    def _decoded(self, bucket: Bucket, words: UInt16, scale: float) -> Float32:
        """Return the sum of rows that no flag says are not finite: uint16, shape ``(n, elements)``.

        Raises:
            CorruptPayload: it is not finite all the same.
        """
        if not bucket.kernels.accumulate_dense(words, self._wire, scale, bucket.decoded):
            raise CorruptPayload(f"a value in {self.dtype} is not finite, and no worker's flag says so")
        return bucket.decoded

    def _narrow(self, bucket: Bucket, words: UInt16) -> None:
        """Write a bucket's values in 16 bits; the others are told if one is too large for them."""
        bucket.kernels.narrow(bucket.values, self._wire, words)
        if not bucket.kernels.norm([bucket.values], False) < INFINITE[self.dtype]:
            bucket.memory.finite = False

    @property
    def _wire(self) -> int:
        return WIRES.index(self.dtype)
