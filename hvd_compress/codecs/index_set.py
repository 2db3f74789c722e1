"""A set of indices and their signs, in a size that never depends on data (Elias-Fano coding).

Of ``k`` ascending indices below ``d`` the lowest ``l = floor(log2(d / k))`` bits are written as they are; the rest are
the places of the ones in a bitmap, place ``(index >> l) + i`` for the i-th index. That is at most ``log2(d / k) + 2``
bits an index, whatever the data: 12 at one in a thousand, against the usual 32.

====== ============================ ==================================================
offset size (bytes)                 meaning
====== ============================ ==================================================
0      4                            uint32 count: indices in use, at most ``capacity``
4      4                            float32: a number that goes with them
8      ceil(capacity * l / 8)       low bits, index after index, most significant first
...    ceil(places / 8)             the bitmap; places = capacity + (d - 1 >> l) + 1
...    ceil(capacity / 8)           signs: a one for each value below zero, if wanted
====== ============================ ==================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hvd_compress.kernels import CorruptPayload, Float32, UInt8, UInt32

_HEAD = struct.Struct("<If")


@dataclass(frozen=True)
class IndexSetFormat:
    """The layout for up to ``capacity`` indices of a bucket of ``elements``; ``signs``: whether they travel, too."""

    elements: int
    capacity: int
    signs: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.capacity <= self.elements <= 2**32:
            raise ValueError(f"capacity must be from 1 to elements ({self.elements}), got {self.capacity}")

    @cached_property
    def _low(self) -> int:
        return (self.elements // self.capacity).bit_length() - 1

    @cached_property
    def _places(self) -> int:
        return self.capacity + ((self.elements - 1) >> self._low) + 1

    @cached_property
    def _bounds(self) -> tuple[int, int, int]:
        low = _HEAD.size + -(-self.capacity * self._low // 8)
        high = low + -(-self._places // 8)
        return low, high, high + (-(-self.capacity // 8) if self.signs else 0)

    @property
    def nbytes(self) -> int:
        """Return the size of every payload of this format."""
        return self._bounds[2]

    def encode(self, indices: UInt32, values: Float32, number: float, payload: UInt8) -> None:
        """Write ``indices`` (ascending, at most ``capacity``), the signs of ``values``, and ``number``."""
        n, low = len(indices), self._low
        payload[:] = 0
        payload[: _HEAD.size] = np.frombuffer(_HEAD.pack(n, number), np.uint8)
        first, second, end = self._bounds
        if low:
            shifts = np.arange(low - 1, -1, -1, dtype=np.uint32)
            bits = np.packbits(((indices[:, None] >> shifts) & 1).astype(np.uint8))
            payload[_HEAD.size : _HEAD.size + len(bits)] = bits
        places = np.zeros(self._places, np.uint8)
        places[(indices >> np.uint32(low)).astype(np.int64) + np.arange(n)] = 1
        payload[first:second] = np.packbits(places)
        if self.signs:
            signs = np.packbits(values < 0)
            payload[second : second + len(signs)] = signs
            assert second + len(signs) <= end

    def decode(self, payload: UInt8) -> tuple[UInt32, Float32, float]:
        """Return the indices (ascending), a sign for each (float32: 1 or -1), and the number.

        Raises:
            CorruptPayload: the payload breaks the format.
        """
        if payload.shape != (self.nbytes,):
            raise CorruptPayload(f"an index set of shape {payload.shape}, expected ({self.nbytes},)")
        n, number = _HEAD.unpack(payload[: _HEAD.size].tobytes())
        if n > self.capacity:
            raise CorruptPayload(f"an index set with {n} indices exceeds its capacity {self.capacity}")
        first, second, _ = self._bounds
        places = np.flatnonzero(np.unpackbits(payload[first:second], count=self._places))
        if len(places) != n:
            raise CorruptPayload(f"an index set with {len(places)} places for {n} indices")
        wide = (places - np.arange(n)).astype(np.uint64) << np.uint64(self._low)
        if self._low:
            bits = np.unpackbits(payload[_HEAD.size : first], count=n * self._low).reshape(n, self._low)
            weights = np.uint64(1) << np.arange(self._low - 1, -1, -1, dtype=np.uint64)
            wide |= bits.astype(np.uint64) @ weights
        if n and (int(wide[-1]) >= self.elements or (wide[1:] <= wide[:-1]).any()):
            raise CorruptPayload("an index set whose indices do not ascend below the bucket's size")
        signs = np.ones(n, np.float32)
        if self.signs:
            signs -= 2 * np.unpackbits(payload[second:], count=n).astype(np.float32)
        return wide.astype(np.uint32), signs, number
