"""Innovations: a fixed number of a vector's entries, which ones and their values, in a size that no data changes.

First the places: a bitmap of ``length`` bits, least significant bit of a byte first, or a list of ascending places
(uint16, or uint32 where ``length`` exceeds 65,536), whichever is shorter; the bitmap if they are equal. They are padded
to 4 bytes. Then the values, float16, in the order of their places. There is no header.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels import CorruptPayload, Float32, UInt8


@dataclass(frozen=True)
class InnovationFormat:
    """The layout for ``count`` entries of a vector of ``length``."""

    length: int
    count: int

    def __post_init__(self) -> None:
        if not 0 < self.count <= self.length <= 2**32:
            raise ValueError(f"count must be from 1 to the vector's length ({self.length}), got {self.count}")

    @cached_property
    def _place(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.length <= 65536 else np.uint32)

    @cached_property
    def _marks(self) -> int:
        """Return the bytes of a bitmap."""
        return -(-self.length // 8)

    @cached_property
    def _is_bitmap(self) -> bool:
        return self._marks <= self.count * self._place.itemsize

    @cached_property
    def _values_at(self) -> int:
        return -(-min(self._marks, self.count * self._place.itemsize) // 4) * 4

    @property
    def nbytes(self) -> int:
        """Return the size in bytes of every payload of this format."""
        return self._values_at + 2 * self.count

    def encode(self, places: NDArray[np.int64], values: Float32, payload: UInt8) -> None:
        """Write the entries to ``payload`` (uint8, ``nbytes``): ``count`` ascending places, and as many values."""
        at = self._values_at
        if self._is_bitmap:
            marked = np.zeros(8 * at, bool)
            marked[places] = True
            payload[:at] = np.packbits(marked, bitorder="little")
        else:
            payload[:at] = 0
            payload[:at].view(self._place)[: self.count] = places
        payload[at:].view(np.float16)[:] = values

    def decode(self, payloads: UInt8) -> Float32:
        """Return the vectors of which ``payloads`` (uint8, ``(n, nbytes)``) hold entries: float32 ``(n, length)``, zero
        where nothing was sent.

        Raises:
            CorruptPayload: a payload breaks the format.
        """
        if payloads.ndim != 2 or payloads.shape[1] != self.nbytes:
            raise CorruptPayload(f"innovations of shape {payloads.shape}, expected (workers, {self.nbytes})")
        places = self._places(np.ascontiguousarray(payloads[:, : self._values_at]))
        values = np.ascontiguousarray(payloads[:, self._values_at :]).view(np.float16)
        if not np.isfinite(values).all():
            raise CorruptPayload("an innovation has a value that is not finite")
        vectors = np.zeros((len(payloads), self.length), np.float32)
        np.put_along_axis(vectors, places, values.astype(np.float32), 1)
        return vectors

    def _places(self, rows: UInt8) -> NDArray[np.int64]:
        if self._is_bitmap:
            marked = np.unpackbits(rows, axis=1, bitorder="little")
            if (marked.sum(1) != self.count).any() or marked[:, self.length :].any():
                raise CorruptPayload(
                    f"an innovation's bitmap does not mark {self.count} of the vector's {self.length} entries"
                )
            return np.nonzero(marked)[1].reshape(len(rows), self.count)
        places = rows.view(self._place)[:, : self.count].astype(np.int64)
        if (places >= self.length).any() or (np.diff(places) <= 0).any():
            raise CorruptPayload(f"an innovation's places do not ascend below the vector's {self.length} entries")
        return places
