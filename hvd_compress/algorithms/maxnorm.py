"""Unbiased quantizers whose codes are summed in an all-reduce (Vineeth, arXiv 2109.12497).

All workers divide by the same norm, so that integer codes can be added on their way. The rounding is random and
unbiased: the expectation of the result is the mean of the gradients, and there is no memory for what it takes off.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

import numpy as np

from hvd_compress.codecs.lanes import MAX_BITS, LaneFormat, MaskFormat, levels_of
from hvd_compress.compressor import Compressor, compressor_dataclass
from hvd_compress.exchange import AllReduce, Array, Bucket, Collective, Exchange, maximum
from hvd_compress.kernels import Float32, Pieces, UInt32
from hvd_compress.schedules import Schedule
from hvd_compress.sparsifier import Selective
from hvd_compress.validation import reject_unknown, require_choice, require_int, shown

log = logging.getLogger(__name__)

NORMS = ("max", "l2")
FEW_BITS = 4
"""Up to so many, the steps between the levels of the Euclidean norm are larger than nearly all elements."""
TINY = 2.0**-80
"""Below this norm, levels divided by the norm would not fit float32."""
GROWN = 2.0**96
"""What gradients are multiplied by when their norm is tiny."""
LARGEST_NORM = (1 - 2.0**-20) * 2.0**128
"""The largest finite norm: a Euclidean one may be beyond float32, where no number is. Means of it do not round to
infinity."""


class Quantizer:
    """One bucket's codes in one step: of the ``size`` numbers in ``pieces``, each times ``factor``."""

    def __init__(
        self, bucket: Bucket, pieces: Pieces, size: int, bits: tuple[int, ...], norm: str, factor: float = 1.0
    ) -> None:
        self._bucket = bucket
        self._pieces = pieces
        self._levels = [levels_of(b) for b in bits]
        self._lanes = LaneFormat(size, self._levels[0], bucket.workers)
        self._masks = MaskFormat(size, bucket.workers)
        self._euclidean = norm == "l2"
        self._factor = factor
        self._grown = 1.0
        self._norm = 0.0
        self._planes: Array | None = None
        if self._lanes.nbytes >= 4 * size > 4096:
            _warn(bits, bucket.workers, self._lanes.width)

    def codes(self) -> Generator[Collective, Array, Array]:
        """Agree on the norm and on every number's scale; return this worker's codes, packed to lanes.

        Raises:
            NonFiniteGradient: on every worker, if something is not finite or the norm is beyond float32.
        """
        bucket, kernels, lowest = self._bucket, self._bucket.kernels, self._levels[0]
        norm = kernels.norm(self._pieces, self._euclidean)
        if norm < np.inf:
            norm = min(norm, LARGEST_NORM)  # no number's magnitude is above it, and this is all that a norm must be for
        self._norm = yield from maximum(bucket, norm * self._factor)
        if 0 < self._norm < TINY * self._factor:
            self._pieces = [kernels.scaled(piece, GROWN) for piece in self._pieces]
            self._norm *= GROWN
            self._grown = GROWN
        if len(self._levels) > 1:
            # a scale is fit for a number if its code there is one of the lowest scale's, whatever the rounding will be
            limits = [self._norm / self._factor * (lowest / levels) for levels in self._levels[1:]]
            planes = bucket.device_scratch("planes", self._masks.words * len(limits), np.int64)
            kernels.mask(self._pieces, np.array(limits, np.float32), self._masks.width, planes)
            self._planes = yield AllReduce(planes)
        unit = 2.0 ** (30 - lowest.bit_length())
        scales = [self._factor * levels * unit / self._norm if self._norm else 0.0 for levels in self._levels]
        words = bucket.device_scratch("words", self._lanes.words, self._lanes.dtype)
        self._lanes.encode(
            kernels, self._pieces, np.array(scales, np.float32), self._planes, bucket.private_key(), words
        )
        return words

    def decode(self, words: Array, workers: int, out: Float32) -> None:
        """Write the mean of the ``workers`` whose codes are summed in ``words`` to ``out`` (float32, ``size``)."""
        steps = [self._norm / (levels * workers) for levels in self._levels]
        self._lanes.decode(self._bucket.kernels, words, np.array(steps, np.float32), self._planes, out)
        if self._grown != 1:
            out *= np.float32(1 / self._grown)  # exact: powers of two


@functools.cache
def _warn_of_noise(bits: int) -> None:
    log.warning(
        'norm="l2" with %d bits is mostly noise: the norm grows with the root of the bucket\'s size; norm="max" trains '
        "better",
        bits,
    )


@functools.cache
def _warn(bits: tuple[int, ...], workers: int, width: int) -> None:
    log.warning(
        "%s bits for %d workers take lanes of %d bits, which is no less than uncompressed float32: fewer bits would "
        "be smaller",
        bits[0],
        workers,
        width,
    )


def check_scales(bits: Any) -> tuple[int, ...]:
    """Return the bits of several scales as a tuple. Raise TypeError or ValueError unless they are ints that ascend."""
    if not isinstance(bits, (tuple, list)):
        raise TypeError(f"bits must be two or more ints, such as (4, 8), got {shown(bits)}")
    for number in bits:
        require_int("bits of a scale", number, 2, MAX_BITS)
    if len(bits) < 2 or list(bits) != sorted(set(bits)):
        raise ValueError(f"bits must be two or more ints that ascend, such as (4, 8), got {shown(tuple(bits))}")
    return tuple(bits)


@compressor_dataclass
class MaxNorm:
    """What the four have in common, beside a compressor's own."""

    runs_on_devices: ClassVar[bool] = True
    signals: ClassVar[bool] = True

    _: KW_ONLY
    norm: Literal["max", "l2"] = "max"

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the compressor's
        require_choice("norm", self.norm, NORMS)
        if self.norm == "l2" and self.scales[-1] <= FEW_BITS:
            _warn_of_noise(self.scales[-1])

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the bits of every scale."""
        raise NotImplementedError


@compressor_dataclass
class OneScale(MaxNorm):
    """Codes of so many bits."""

    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("bits", self.bits, 2, MAX_BITS)

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.bits,)


@compressor_dataclass
class SeveralScales(MaxNorm):
    """Codes of as many bits as the first scale has."""

    bits: tuple[int, ...] = (4, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bits", check_scales(self.bits))

    @property
    def scales(self) -> tuple[int, ...]:
        return self.bits


@compressor_dataclass
class AllElements(MaxNorm, Compressor):
    """Every element is sent; nothing is remembered."""

    def exchange(self, bucket: Bucket) -> Exchange:
        quantizer = Quantizer(bucket, bucket.pieces, bucket.size, self.scales, self.norm)
        words = yield from quantizer.codes()
        total = yield AllReduce(words)
        quantizer.decode(total, bucket.workers, bucket.decoded)
        return bucket.decoded


@compressor_dataclass
class RandomElements(MaxNorm, Selective):
    """Random coordinates are sent."""

    ratio: float | Schedule = 0.1

    def exchange(self, bucket: Bucket) -> Exchange:
        values = bucket.values
        indices, k = self._coordinates(bucket)
        count = len(indices)
        bucket.target, bucket.sent = k, count
        chosen = bucket.device_scratch("chosen", k, np.float32)
        bucket.kernels.take(values, indices, chosen[:count])
        chosen[count:] = 0  # the last step of a walk
        factor = 1.0 if self.error_feedback else bucket.size / count
        quantizer = Quantizer(bucket, [chosen], k, self.scales, self.norm, factor)
        words = yield from quantizer.codes()
        decoded = bucket.device_scratch("decoded", k, np.float32)
        if self.error_feedback:
            decoded[:] = 0
            bucket.kernels.restore(values, indices, decoded[:count])
        total = yield AllReduce(words)
        quantizer.decode(total, bucket.workers, decoded)
        mean = bucket.decoded
        mean[:] = 0
        bucket.kernels.restore(mean, indices, decoded[:count])
        return mean

    def check_bucket_state(self, state: Mapping[str, Any], size: int) -> None:
        reject_unknown(state, ("key", "position", "k"), "the saved state of RandKMaxNorm's buckets")
        if state:
            for key, (least, most) in {"key": (0, 2**64 - 1), "position": (0, size), "k": (1, max(size, 1))}.items():
                require_int(f"the saved {key}", state.get(key), least, most)

    def _coordinates(self, bucket: Bucket) -> tuple[UInt32, int]:
        """Return this step's coordinates, and how many a step of this walk has (but the last, which has the rest)."""
        _, k = self.target(bucket)
        state, size = bucket.state, bucket.size
        if state.get("position", size) == size:
            state.clear()
            state.update(key=bucket.key(), position=0, k=k)
        first = state["position"]
        last = state["position"] = min(first + state["k"], size)
        indices: UInt32 = bucket.device_scratch("indices", last - first, np.uint32)
        bucket.kernels.permutation(state["key"], first, size, indices)
        return indices, state["k"]


@compressor_dataclass
class QSGDMaxNorm(OneScale, AllElements):
    """Single-scale stochastic quantization of every element (section 3: QSGDMaxNorm).

    1. ``w``, the largest norm of any worker's bucket, is found by an all-reduce of one number.
    2. With ``s = 2**(bits-1) - 1`` levels, ``x*s/w`` is rounded down or up at random, so that its expectation is exact.
    3. The codes are packed to integers with room for the sum over N workers, and all-reduced; the sum times
       ``w/(s N)`` is the mean.

    A code that N workers add needs about ``bits + log2(N)`` bits; docs/quantizers.md tables the bytes. There is no
    memory: what rounding adds is noise without bias, whose variance falls with the bits and with N.

    Args:
        bits: 2 to 16, the sign included.
        norm: ``"max"``, the largest magnitude, or ``"l2"``, the Euclidean norm, whose levels are coarser.

    Tuning: 8 bits train like float32; with 4, half the bytes, expect to lose a little. ``bucket_mb`` decides how many
    elements share a norm: smaller buckets, finer levels.

    >>> QSGDMaxNorm(bits=4)
    QSGDMaxNorm(bits=4)
    """

    name: ClassVar[str] = "qsgd-maxnorm"
    joinable: ClassVar[bool] = True
    schedule = (AllReduce, AllReduce)


@compressor_dataclass
class QSGDMaxNormMultiScale(SeveralScales, AllElements):
    """Stochastic quantization with a finer scale for small elements (section 4: QSGDMaxNormMultiScale).

    As ``QSGDMaxNorm`` with the first scale's bits, but an element that is small enough on every worker uses the finest
    scale at which its code still is one of the first scale's. Between the norm and the codes a third all-reduce finds
    that out: each worker marks, for every scale but the first, the elements that do not fit, and the number of marks
    is summed in ``ceil(log2(N+1))`` bits. An element uses a scale that nobody marked, which is the minimum over
    workers of the finest that fits. The marks depend on the gradient alone, not on the rounding, or there would be a
    bias.

    Args:
        bits: of the scales, ascending, 2 to 16 each; codes on the wire have the first one's width.
        norm: ``"max"`` or ``"l2"``.

    Tuning: ``(4, 8)`` costs the bytes of 4 bits and the marks, and comes near 8 bits where gradients are mostly small
    against the largest.

    >>> QSGDMaxNormMultiScale(bits=(4, 8, 12))
    QSGDMaxNormMultiScale(bits=(4, 8, 12))
    """

    name: ClassVar[str] = "qsgd-maxnorm-multiscale"
    schedule = (AllReduce, AllReduce, AllReduce)


@compressor_dataclass
class RandKMaxNorm(OneScale, RandomElements):
    """Quantization of K random coordinates, the same on all workers (section 5: GlobalRandKMaxNorm).

    The coordinates of a bucket are walked in a random order that all workers know without talking: in ``ceil(d/K)``
    steps each is sent exactly once, K in a step and in the last one the rest, then a new order begins. What is sent is
    quantized as by ``QSGDMaxNorm``.

    With ``error_feedback=True`` the coordinates that are not sent are remembered and added to the next gradient. The
    rounding of those that are sent is not: it has no bias to make good, and an unbiased quantizer is no contraction
    (its variance may be many times the signal), so that a memory which kept it would amplify it without bound. As it
    is, the memory is bounded whatever the bits, the norm, the bucket and the number of workers. Proof: a coordinate's
    memory is zero after each step that sends it, and is sent once in each walk, so that it never holds more than the
    gradients of ``2 ceil(d/K) - 2`` steps, exactly. (Of independent gradients it holds the root of ``ceil(d/K) / 2``
    times one gradient: 2.1 to 2.4 at ``ratio=0.1``.) And what was sent plus what is held has the sum of all gradients
    as its expectation.

    With ``False`` the K are scaled by ``d/K``, which makes the result of every step unbiased, at the price of a
    variance ``d/K`` times as large; the other elements are zero.

    Args:
        ratio: K/d, a number in (0, 1] or a schedule; a new value takes effect when a new order begins.
        bits: 2 to 16, the sign included.
        norm: ``"max"`` or ``"l2"``, of the K coordinates.

    Tuning: the cheapest bytes of all, and an element waits up to ``1/ratio`` steps: begin with ``ratio=0.1``, the
    memory, and an optimizer without momentum, which trained best by far where we measured it (docs/quantizers.md).
    With momentum 0.9 the gradients of many steps at once are too much: ``error_feedback=False`` is better there.

    >>> RandKMaxNorm(0.05, bits=4)
    RandKMaxNorm(ratio=0.05, bits=4)
    """

    name: ClassVar[str] = "randk-maxnorm"
    schedule = (AllReduce, AllReduce)


@compressor_dataclass
class RandKMaxNormMultiScale(SeveralScales, RandomElements):
    """``RandKMaxNorm`` with the scales of ``QSGDMaxNormMultiScale`` (section 5: GlobalRandKMaxNormMultiScale).

    Args:
        ratio: K/d, a number in (0, 1] or a schedule; a new value takes effect when a new order begins.
        bits: of the scales, ascending, 2 to 16 each.
        norm: ``"max"`` or ``"l2"``, of the K coordinates.

    Tuning: as ``RandKMaxNorm``, with the scales ``(4, 8)`` to begin with.

    >>> RandKMaxNormMultiScale(ratio=0.05, bits=(4, 8))
    RandKMaxNormMultiScale(ratio=0.05)
    """

    name: ClassVar[str] = "randk-maxnorm-multiscale"
    schedule = (AllReduce, AllReduce, AllReduce)
