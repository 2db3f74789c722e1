"""TernGrad: every element one of three values (Wen, Xu, Yan, Wu, Wang, Chen, Li; NeurIPS 2017, arXiv 1705.07878)."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, Bucket, Exchange
from hvd_compress.kernels import CorruptPayload, Float32, UInt8, hash32
from hvd_compress.validation import require_int, require_number

STRETCH = 1 << 18
"""Elements worked on at a time."""
SIGNS = np.array([0, 1, -1], np.float32)
"""What the codes 0, 1 and 2 mean; 3 means nothing."""


@compressor_dataclass
class TernGrad(Compressor):
    """Send zero, plus or minus a scale for every element: 2 bits, unbiased, without a memory.

    1. In chunks of ``chunk`` elements (the paper: layers), the scale ``s`` is the largest magnitude.
    2. An element ``g`` becomes ``s * sign(g)`` with probability ``|g| / s``, and zero otherwise.
    3. Scales and codes are all-gathered; the mean of the workers' is the result.

    Plain NumPy: meant for comparisons of accuracy, not for speed.

    Args:
        chunk: elements with a scale of their own; None: the whole bucket.
        clip: clip elements to so many standard deviations of their chunk first (the paper's 2.5: less noise, but no
            longer unbiased); None: do not.

    Tuning: ``clip=2.5`` and a lower learning rate if training is too noisy.

    >>> TernGrad(clip=2.5)
    TernGrad(clip=2.5)
    """

    name: ClassVar[str] = "terngrad"
    schedule = (AllGather,)

    _: KW_ONLY
    chunk: int | None = 16_384
    clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None:
            require_int("chunk", self.chunk, 1)
        if self.clip is not None:
            require_number("clip", self.clip, "above 0 and finite", lambda deviations: 0 < deviations < np.inf)

    def exchange(self, bucket: Bucket) -> Exchange:
        chunk = self.chunk or max(1, bucket.size)
        codes_at = header.NBYTES + 4 * -(-bucket.size // chunk)
        payload = bucket.payload(codes_at + -(-bucket.size // 4), codec=header.TERNARY)
        values = bucket.values
        if not bucket.memory.finite:
            values[:] = 0  # the step is abandoned anyway
        scales = payload[header.NBYTES : codes_at].view("<f4")
        if bucket.size:
            scales[:] = self._scales(values, chunk)
        for begin in range(0, bucket.size, STRETCH):
            codes = ternary(values[begin : begin + STRETCH], spread(scales, begin, bucket.size, chunk), bucket, begin)
            payload[codes_at + begin // 4 :][: -(-len(codes) // 4)] = pack(codes)
        gathered = yield AllGather(payload)
        header.check(gathered, codec=header.TERNARY, elements=bucket.size, capacity=0)
        all_scales = np.ascontiguousarray(gathered[:, header.NBYTES : codes_at]).view("<f4")
        packed = gathered[:, codes_at:]
        if not (np.isfinite(all_scales) & (all_scales >= 0)).all() or (packed & packed >> 1 & 0x55).any():
            raise CorruptPayload("a payload has a scale that is none, or a code beyond 2")
        mean = bucket.decoded
        mean[:] = 0
        for row, own in zip(packed, all_scales * np.float32(1 / bucket.workers), strict=True):
            for begin in range(0, bucket.size, STRETCH):
                part = mean[begin : begin + STRETCH]
                codes = row[begin // 4 :][: -(-len(part) // 4), None] >> np.array([0, 2, 4, 6], np.uint8) & 3
                part += SIGNS[codes.reshape(-1)[: len(part)]] * spread(own, begin, bucket.size, chunk)
        return mean

    def _scales(self, values: Float32, chunk: int) -> Float32:
        starts = np.arange(0, len(values), chunk)
        largest: Float32 = np.maximum.reduceat(np.abs(values), starts)
        if self.clip is None:
            return largest
        counts = np.diff(starts, append=len(values))
        wide = values.astype(np.float64)
        means = np.add.reduceat(wide, starts) / counts
        deviations = np.sqrt(np.maximum(np.add.reduceat(wide * wide, starts) / counts - means * means, 0))
        # of equal elements the deviation is zero: those are not outliers
        limits = np.where(deviations > 1e-6 * np.abs(means), self.clip * deviations, np.inf)
        return np.minimum(largest, limits).astype(np.float32)


def spread(scales: Float32, begin: int, size: int, chunk: int) -> Float32:
    """Return the scale of every element of the stretch that begins at ``begin``."""
    own: Float32 = scales[np.arange(begin, min(begin + STRETCH, size)) // chunk]
    return own


def ternary(values: Float32, scales: Float32, bucket: Bucket, begin: int) -> UInt8:
    """Return random codes of the elements ``begin`` and following."""
    counter = np.arange(begin, begin + len(values), dtype=np.uint64)
    draws = (hash32(bucket.private_key(), counter) >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    with np.errstate(divide="ignore", invalid="ignore"):
        up: NDArray[np.bool_] = np.abs(values) / scales > draws
    return np.where(up, np.where(values < 0, 2, 1), 0).astype(np.uint8)


def pack(codes: UInt8) -> UInt8:
    """Pack four codes to a byte, the first in its least significant bits."""
    fours = np.zeros((-(-len(codes) // 4), 4), np.uint8)
    fours.reshape(-1)[: len(codes)] = codes
    packed: UInt8 = np.bitwise_or.reduce(fours << np.array([0, 2, 4, 6], np.uint8), axis=1)
    return packed
