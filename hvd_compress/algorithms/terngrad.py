"""TernGrad: every element one of three values (Wen, Xu, Yan, Wu, Wang, Chen, Li; NeurIPS 2017, arXiv 1705.07878)."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import ClassVar, Literal

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, AllReduce, Bucket, Exchange
from hvd_compress.kernels import CorruptPayload, Float32, Int64
from hvd_compress.validation import require_bool, require_int, require_number

SECTION = 1024
"""Elements whose moments are summed one after the other."""


@compressor_dataclass
class TernGrad(Compressor):
    """Send zero, plus or minus a scale for every element: 2 bits, unbiased but for clipping, without a memory.

    1. In chunks of ``chunk`` elements (the paper: layers), elements are clipped to ``clip`` standard deviations, and
       the scale ``s`` is the largest magnitude.
    2. An element ``g`` becomes ``s * sign(g)`` with probability ``|g| / s``, and zero otherwise.
    3. Scales and codes are all-gathered; the mean of the workers' is the result.

    Args:
        chunk: elements with a scale of their own; ``"layer"``: each parameter has one, as in the paper (section 4.1);
            None: the whole bucket.
        clip: clip elements to so many standard deviations of their chunk first, the paper's 2.5 (section 4.2): less
            noise, but no longer unbiased; None: do not.
        shared: use the largest scale of all workers, as in the paper (scaler sharing, section 4.1), by an all-reduce
            before the codes are drawn: all workers' elements are then multiples of one number. More noise where
            workers differ, and no fewer bytes in an all-gather.

    Tuning: ``TernGrad(chunk="layer", shared=True)`` is the paper's. A lower learning rate if training is too noisy.

    >>> TernGrad(clip=None)
    TernGrad(clip=None)
    """

    name: ClassVar[str] = "terngrad"
    runs_on_devices: ClassVar[bool] = True

    _: KW_ONLY
    chunk: int | Literal["layer"] | None = 16_384
    clip: float | None = 2.5
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.chunk, str):
            if self.chunk != "layer":
                raise ValueError(f"chunk must be a number of elements, 'layer' or None, got {self.chunk!r}")
        elif self.chunk is not None:
            require_int("chunk", self.chunk, 1)
        if self.clip is not None:
            require_number("clip", self.clip, "above 0 and finite", lambda deviations: 0 < deviations < np.inf)
        require_bool("shared", self.shared)

    @property
    def schedule(self) -> tuple[type[AllReduce] | type[AllGather], ...]:  # type: ignore[override]
        return (AllReduce, AllGather) if self.shared else (AllGather,)

    def exchange(self, bucket: Bucket) -> Exchange:
        ends = self._ends(bucket)
        codes_at = header.NBYTES + 4 * len(ends)
        payload = bucket.payload(codes_at + -(-bucket.size // 4), codec=header.TERNARY)
        values = bucket.values
        if not bucket.memory.finite:
            values[:] = 0  # the step is abandoned anyway
        scales = payload[header.NBYTES : codes_at].view("<f4")
        scales[:] = self._scales(bucket, ends)
        if self.shared:
            scales[:] = yield AllReduce(scales.copy(), op="max")
        bucket.kernels.ternarize(values, ends, scales, bucket.private_key(), payload[codes_at:])
        gathered = yield AllGather(payload)
        header.check(gathered, codec=header.TERNARY, elements=bucket.size, capacity=0)
        own = np.ascontiguousarray(gathered[:, header.NBYTES : codes_at]).view("<f4")
        sound = bool((np.isfinite(own) & (own >= 0)).all())
        parts = own * np.float32(1 / bucket.workers)
        if not (sound and bucket.kernels.accumulate_ternary(gathered, codes_at, ends, parts, bucket.decoded)):
            raise CorruptPayload("a payload has a scale that is none, or a code beyond 2")
        return bucket.decoded

    def _ends(self, bucket: Bucket) -> Int64:
        """Return where the chunks end."""
        if self.chunk == "layer":
            ends: Int64 = np.cumsum([math.prod(piece.shape) for piece in bucket.pieces], dtype=np.int64)
            return ends
        length = bucket.size if self.chunk is None else int(self.chunk)
        return np.minimum(np.arange(length, bucket.size + length, max(1, length), dtype=np.int64), bucket.size)

    def _scales(self, bucket: Bucket, ends: Int64) -> Float32:
        """Return the scale of each chunk. Moments are added up from those of short sections: many at a time are
        computed on a device."""
        if not len(ends):
            return np.empty(0, np.float32)
        sections = np.union1d(np.arange(SECTION, bucket.size, SECTION), ends)
        moments = bucket.kernels.section_moments(bucket.values, sections)
        counts = np.diff(ends, prepend=0)
        first = np.searchsorted(sections, ends - counts, side="right")  # of the sections of each chunk
        largest: Float32 = np.maximum.reduceat(moments.largest, first)
        if self.clip is None:
            return largest
        means = np.add.reduceat(moments.totals, first) / counts
        deviations = np.sqrt(np.maximum(np.add.reduceat(moments.squares, first) / counts - means * means, 0))
        # of equal elements the deviation is zero: those are not outliers
        limits = np.where(deviations > 1e-6 * np.abs(means), self.clip * deviations, np.inf)
        return np.minimum(largest, limits).astype(np.float32)
