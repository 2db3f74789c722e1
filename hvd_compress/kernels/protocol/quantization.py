"""The kernels of quantizers whose integer codes are summed in flight, and how codes lie in words.

**Codes and lanes.** Each of ``workers`` (N) workers turns an element into a code in ``[-levels, levels]``; an
all-reduce adds the codes up. Several codes share a word, each in a lane of ``width`` bits, where
``2 * levels * workers < 2**width`` and ``width <= 32``. A word of ``bits`` (int32: 32, int64: 64) has
``L = bits // width`` lanes and is the signed integer ``sum_j code_j * 2**(width * j)``: no sum of up to N workers'
words overflows, whatever their order. Lane j of a sum ``S`` is
``((S + B) mod 2**bits >> width * j) mod 2**width - levels * workers`` with
``B = levels * workers * sum_j 2**(width * j)``; that holds for any number of summands up to N.

**Order.** Elements go by lines of 16; line ``k*L + j`` is lane j of the words ``16*k ... 16*k + 15``. So there are
``16 * ceil(ceil(d / 16) / L)`` words; elements beyond the ``d``-th have code 0.

**Planes.** With m > 1 scales, workers vote on the scale of each element. Plane j counts the workers who are against
the scales above the j-th: int64 words of ``63 // v`` lanes of ``v = workers.bit_length()`` bits, unsigned, in the same
order; the m - 1 planes follow each other. An element's scale is ``scales[c]``, where c is the number of leading planes
whose count at the element is zero.
"""

from __future__ import annotations

from typing import Protocol

from hvd_compress.kernels.protocol.definitions import (
    Float32,
    Int64,
    Pieces,
    SectionMoments,
    UInt8,
    UInt32,
    Words,
)

MAX_LEVELS = 2**15 - 1
"""Codes fit 16 bits."""

MAX_SCALES = 15
"""Scales that a quantizer may choose from."""

FEISTEL_ROUNDS = 8
"""Rounds of the generalized Feistel network that ``permutation`` is."""


class QuantizationKernels(Protocol):
    """What a kernel set provides for quantizers; see this module for the layout."""

    def norm(self, pieces: Pieces, euclidean: bool) -> float:
        """Return the largest magnitude (by magnitude bits: infinity and then NaN win), or the Euclidean norm.

        The latter is the square root of the sum of float64 squares, added as in ``Moments``. No pieces: 0.0.
        """
        ...

    def quantize(
        self,
        pieces: Pieces,
        scales: Float32,
        planes: Int64 | None,
        workers: int,
        levels: int,
        width: int,
        key: int,
        words: Words,
    ) -> None:
        """Round the gradient at random to codes, unbiased, and pack them into ``words`` (int32 or int64).

        With ``F = fraction_bits(levels)`` and ``limit = levels * 2**F``, element i with scale ``s`` becomes
        ``y = float32(x * s)``, ``y = y if y < limit else limit``, ``y = y if y > -limit else -limit``, ``t = y``
        rounded to the nearest integer (ties to even), ``u = scramble(key, i) >> (32 - F)``, and the code
        ``floor((t + u) / 2**F)``: its expectation is ``t / 2**F``, and a multiple of ``2**F`` is never changed.
        So for norm w the scale of a quantizer with ``l`` levels is ``l * 2**F / w``; scales are finite, and >= 0.
        ``planes`` are those that N workers summed; None if and only if there is one scale.
        """
        ...

    def dequantize(
        self, words: Words, planes: Int64 | None, workers: int, levels: int, width: int, scales: Float32, out: Float32
    ) -> None:
        """Write ``out[i] = float32(float32(sum of codes) * scales[c])``: ``words`` are summed over up to ``workers``.

        The words of a single worker are such a sum. Words that no worker could have made give lanes modulo 2**32,
        as int32.
        """
        ...

    def mask(self, pieces: Pieces, limits: Float32, width: int, planes: Int64) -> None:
        """Write one worker's votes: plane j is 1 where ``|x| > limits[j]`` (by magnitude bits: also for NaN), else 0.

        ``limits`` (>= 0) must not ascend; ``width`` is that of the planes' lanes, ``workers.bit_length()``.
        """
        ...

    def permutation(self, key: int, start: int, size: int, out: UInt32) -> None:
        """Write ``out[i] = P(start + i)``, for a random permutation P of ``[0, size)`` that the key determines.

        P needs no memory: with ``a = ceil(sqrt(size))`` and ``b = ceil(size / a)``, x is split into ``l = x // b`` and
        ``r = x % b``. Round j, of ``FEISTEL_ROUNDS``, has ``k = hash64(key, j)``; in an even one
        ``l = (l + (mix32(k, r) * a >> 32)) % a``, in an odd one ``r = (r + (mix32(k, l) * b >> 32)) % b``. That gives
        ``l * b + r``; while it is >= size, it is permuted again. ``0 <= start``, ``start + len(out) <= size``, and
        ``1 <= size < 2**32``.
        """
        ...

    def section_moments(self, x: Float32, ends: Int64) -> SectionMoments:
        """Return the moments of the sections of ``x``, which are those of ``ternarize``; on the host.

        ``largest`` is by magnitude bits: infinity and then NaN win.
        """
        ...

    def ternarize(self, x: Float32, ends: Int64, scales: Float32, key: int, codes: UInt8) -> None:
        """Round ``x`` at random to zero or plus or minus the scale of its section, and pack the codes, four to a byte.

        Section s is ``[ends[s - 1], ends[s])``; ``ends`` ascend to the number of elements. Element i becomes 1, or 2 if
        it is below zero, where ``|x| / scale > (hash32(key, i) >> 8) * 2**-24`` (float32), and 0 otherwise, as NaN
        does. Its code is in the bits ``2 * (i % 4)`` and above of byte ``i // 4``; the last byte is filled with zeros.
        """
        ...

    def accumulate_ternary(self, payloads: UInt8, codes_at: int, ends: Int64, scales: Float32, out: Float32) -> bool:
        """Write the sum of ternary vectors, one in every row of ``payloads`` from the byte ``codes_at`` on.

        Sections and codes as in ``ternarize``; ``scales`` (finite, >= 0) has a row for every payload and a column for
        every section. ``out`` begins with 0; the payloads' ``scale``, ``-scale`` or ``0.0`` are added in the order of
        the rows (float32). Return whether no code is 3, which means nothing; otherwise ``out`` is undefined.
        """
        ...


def check_lanes(workers: int, levels: int, width: int) -> None:
    """Raise ValueError unless lanes of ``width`` bits have room for the sums of so many workers' codes."""
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels must be in [1, {MAX_LEVELS}], not {levels}")
    if workers < 1:
        raise ValueError(f"workers must be >= 1, not {workers}")
    if not 2 <= width <= 32:
        raise ValueError(f"width must be in [2, 32], not {width}")
    if 2 * levels * workers >= 2**width:
        raise ValueError(f"width is {width}, too narrow for the sum of {workers} codes of up to {levels} in magnitude")


def fraction_bits(levels: int) -> int:
    """Return the bits below the point in the fixed-point numbers of ``quantize``: ``levels * 2**F < 2**30``."""
    return 30 - levels.bit_length()
