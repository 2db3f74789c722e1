"""Quantized payloads that an all-reduce adds up: several integer codes to a word, in lanes that cannot overflow.

``hvd_compress.kernels.protocol.quantization`` says how codes lie in words. These formats choose the narrowest lane in
which the sum of all workers' codes fits, and the word, int32 or int64, that wastes the fewest bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels import LANES, MAX_LEVELS, Float32, Int64, Kernels, Pieces, Words

MAX_BITS = MAX_LEVELS.bit_length() + 1


def levels_of(bits: int) -> int:
    """Return the levels on either side of zero that codes of ``bits`` bits (2 to 16, with the sign) have.

    >>> levels_of(2), levels_of(8)
    (1, 127)
    """
    if not 2 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be from 2 to {MAX_BITS}, not {bits}")
    return (1 << bits - 1) - 1


def largest_bits(workers: int) -> int:
    """Return the most bits (up to 16) of codes whose sums over ``workers`` fit a lane of 32 bits; 0 for none.

    >>> largest_bits(1024), largest_bits(1_000_000)
    (16, 12)
    """
    return max((bits for bits in range(2, MAX_BITS + 1) if 2 * levels_of(bits) * workers < 2**32), default=0)


def bytes_per_element(bits: int, workers: int) -> float:
    """Return the bytes on the wire for an element of a large bucket.

    >>> [round(bytes_per_element(4, workers), 2) for workers in (1, 2, 8, 64, 1024)]
    [0.5, 0.67, 0.89, 1.33, 2.0]
    """
    return _choose(levels_of(bits), workers)[2]


def _choose(levels: int, workers: int) -> tuple[int, np.dtype[Any], float]:
    """Return the width of a lane, the word, and the bytes per element."""
    width = (2 * levels * workers).bit_length()
    if width > 32:
        raise ValueError(
            f"the sum of {workers} codes of up to {levels} in magnitude needs {width} bits, and a lane has at most 32: "
            f"use at most {largest_bits(workers)} bits for {workers} workers"
        )
    narrow, wide = 4 / (32 // width), 8 / (64 // width)
    return (width, np.dtype(np.int64), wide) if wide < narrow else (width, np.dtype(np.int32), narrow)


@dataclass(frozen=True)
class LaneFormat:
    """The words of one bucket of ``size`` elements with codes from ``-levels`` to ``levels``, summed over ``workers``.

    >>> LaneFormat(1000, levels_of(8), 8).width, LaneFormat(1000, levels_of(8), 8).lanes
    (11, 5)
    """

    size: int
    levels: int
    workers: int

    def __post_init__(self) -> None:
        _check(self.size, self.workers)
        if not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(f"levels must be from 1 to {MAX_LEVELS}, not {self.levels}")
        _choose(self.levels, self.workers)

    @cached_property
    def width(self) -> int:
        """Return the bits of a lane."""
        return _choose(self.levels, self.workers)[0]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of a word: int32, or int64 where that takes fewer bytes."""
        return _choose(self.levels, self.workers)[1]

    @cached_property
    def lanes(self) -> int:
        """Return the number of codes in a word."""
        return 8 * self.dtype.itemsize // self.width

    @cached_property
    def words(self) -> int:
        """Return the length of the payload, in words."""
        return _words(self.size, self.lanes)

    @cached_property
    def nbytes(self) -> int:
        return self.words * self.dtype.itemsize

    def empty(self) -> Words:
        """Return an uninitialized payload."""
        words: Words = np.empty(self.words, self.dtype)
        return words

    def encode(
        self, kernels: Kernels, pieces: Pieces, scales: Float32, planes: Int64 | None, key: int, words: Words
    ) -> None:
        """Call ``Kernels.quantize`` with this format."""
        kernels.quantize(pieces, scales, planes, self.workers, self.levels, self.width, key, words)

    def decode(self, kernels: Kernels, words: Words, scales: Float32, planes: Int64 | None, out: Float32) -> None:
        """Call ``Kernels.dequantize`` with this format."""
        kernels.dequantize(words, planes, self.workers, self.levels, self.width, scales, out)


@dataclass(frozen=True)
class MaskFormat:
    """The votes of ``workers`` on one scale: a plane of counts up to ``workers``, in int64 words that stay positive."""

    size: int
    workers: int

    def __post_init__(self) -> None:
        _check(self.size, self.workers)

    @cached_property
    def width(self) -> int:
        """Return the bits of a lane."""
        return self.workers.bit_length()

    @cached_property
    def dtype(self) -> np.dtype[np.int64]:
        return np.dtype(np.int64)

    @cached_property
    def lanes(self) -> int:
        """Return the number of counts in a word."""
        return 63 // self.width

    @cached_property
    def words(self) -> int:
        """Return the length of a plane, in words."""
        return _words(self.size, self.lanes)

    @cached_property
    def nbytes(self) -> int:
        return self.words * self.dtype.itemsize

    def empty(self, planes: int = 1) -> NDArray[np.int64]:
        """Return uninitialized planes."""
        return np.empty(planes * self.words, self.dtype)


def _check(size: int, workers: int) -> None:
    if size < 0:
        raise ValueError(f"size must be >= 0, not {size}")
    if not 1 <= workers < 2**32:
        raise ValueError(f"workers must be from 1 to 2**32 - 1, not {workers}")


def _words(size: int, lanes: int) -> int:
    return LANES * -(-size // (LANES * lanes))
