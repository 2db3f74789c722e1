"""Sparse entries by region: what travels when every worker sums a part of the elements.

The lines of 16 elements of a bucket are dealt out to the regions in turn, so that no layer falls to one region: line l
belongs to region ``l % regions``, and is the ``l // regions``-th of it. A position counts the elements of its region.

A row holds entries of one region: per block of 65,536 positions the number of entries (uint16, or uint32 when the
capacity exceeds 65,535), padded to 4 bytes; with range8 the 16 bytes of a range-based float; in-block positions
(uint16) x capacity, ascending, padded to 4 bytes; values x capacity as in ``sparse``; padded to 4 bytes. Unused entries
are zero. Rows have no header: the payload around them does, where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvd_compress.codecs import range_float
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.codecs.sparse import SPARSE_WIRES, VALUE_BYTES
from hvd_compress.kernels import BLOCK, LANES, CorruptPayload, Float32, Kernels, UInt8, UInt16, UInt32

Int64 = NDArray[np.int64]


class Entries(NamedTuple):
    """Entries of several rows, one row after the other, with ascending positions in each."""

    rows: Int64
    positions: Int64
    values: Float32


@dataclass(frozen=True)
class RegionFormat:
    """The rows of a bucket of so many ``elements``; ``wire`` names the type of the values."""

    elements: int
    regions: int
    capacity: int
    wire: str = "float32"

    @cached_property
    def span(self) -> int:
        """Return the positions of the largest region."""
        lines = -(-self.elements // LANES)
        return -(-lines // self.regions) * LANES

    @cached_property
    def nbytes(self) -> int:
        """Return the size of a row."""
        return _padded(self._values_at + self.capacity * VALUE_BYTES[self.wire])

    def placed(self, indices: UInt32) -> tuple[Int64, Int64]:
        """Return the regions and positions of elements."""
        wide = indices.astype(np.int64)
        lines, lanes = wide // LANES, wide % LANES
        return lines % self.regions, lines // self.regions * LANES + lanes

    def indices(self, regions: Int64 | int, positions: Int64) -> UInt32:
        """Return the elements at these positions of regions; undo ``placed``.

        Raises:
            CorruptPayload: a region has no such position: it is smaller than others, or the bucket ends there.
        """
        lines, lanes = positions // LANES, positions % LANES
        found = (lines * self.regions + regions) * LANES + lanes
        if found.max(initial=0) >= max(self.elements, 1):
            raise CorruptPayload(f"a position beyond the {self.elements} elements")
        indices: UInt32 = found.astype(np.uint32)
        return indices

    def encode(self, kernels: Kernels, entries: Entries, rows: UInt8) -> Float32:
        """Write entries, at most ``capacity`` a row, to ``rows`` (uint8, ``(n, nbytes)``); return their values as
        whoever decodes them gets them."""
        rows[:] = 0
        numbers, positions, values = entries
        count = len(values)
        slots = np.arange(count) - np.searchsorted(numbers, numbers)
        blocks = len(rows) * self._blocks
        counts: UInt16 | UInt32 = np.zeros(blocks, np.uint16) if self._narrow else np.zeros(blocks, np.uint32)
        in_block = np.empty(count, np.uint16)
        words: Float32 | UInt16 = np.empty(count, np.uint16) if self._code in (1, 2) else np.empty(count, np.float32)
        virtual = (numbers * self._blocks * BLOCK + positions).astype(np.uint32)
        kernels.pack(virtual, values, self._code % 3, counts, in_block, words, None)
        rows[:, : self._counted] = counts.reshape(len(rows), -1).view(np.uint8)
        self._positions(rows)[numbers, slots] = in_block
        section = rows[:, self._values_at :][:, : self.capacity * VALUE_BYTES[self.wire]]
        if self.wire == "range8":
            low, high = float(values.min(initial=0)), float(values.max(initial=0))
            number = range_float.fit(kernels, values, 8, None, low, high)
            for row in rows:
                number.write(row[self._number_at :])
            codes = np.empty(count, np.uint8)
            number.encode(kernels, values, codes)
            section[numbers, slots] = codes
            return number.decode(kernels, codes, np.empty(count, np.float32))
        section.view(words.dtype)[numbers, slots] = words
        return self._widened(kernels, words)

    def decode(self, kernels: Kernels, rows: UInt8) -> Entries:
        """Return the entries of ``rows`` (uint8, ``(n, nbytes)``).

        Raises:
            CorruptPayload: a row breaks the format.
        """
        if rows.ndim != 2 or rows.shape[1] != self.nbytes:
            raise CorruptPayload(f"rows of shape {rows.shape}, expected (n, {self.nbytes})")
        told = np.ascontiguousarray(rows[:, : self._counted])
        counts = told.view(np.uint16 if self._narrow else np.uint32).astype(np.int64)
        totals = counts.sum(1)
        if (totals > self.capacity).any():
            row = int(np.argmax(totals > self.capacity))
            raise CorruptPayload(f"row {row} has {int(totals[row])} entries, more than its capacity {self.capacity}")
        used = np.arange(self.capacity) < totals[:, None]
        numbers = np.repeat(np.arange(len(rows)), totals)
        blocks = np.repeat(np.tile(np.arange(self._blocks), len(rows)), counts.reshape(-1))
        positions = blocks * BLOCK + self._positions(rows)[used]
        if (positions >= self.span).any() or (np.diff(positions)[np.diff(numbers) == 0] <= 0).any():
            raise CorruptPayload("positions must ascend within a row, and lie in its region")
        section = rows[:, self._values_at :][:, : self.capacity * VALUE_BYTES[self.wire]]
        if self.wire == "range8":
            values = np.empty(len(numbers), np.float32)
            ends = np.cumsum(totals)
            for row, (end, total) in enumerate(zip(ends.tolist(), totals.tolist(), strict=True)):
                number = RangeFloat.read(rows[row, self._number_at :], 8)
                number.decode(kernels, section[row, :total].copy(), values[end - total : end])
        else:
            words: Float32 | UInt16 = section.view(np.float32) if self._code == 0 else section.view(np.uint16)
            values = self._widened(kernels, words[used])
        if not np.isfinite(values).all():
            raise CorruptPayload("a value is not finite")
        return Entries(numbers, positions, values)

    @cached_property
    def _code(self) -> int:
        return SPARSE_WIRES.index(self.wire)

    @cached_property
    def _blocks(self) -> int:
        return max(1, -(-self.span // BLOCK))

    @cached_property
    def _narrow(self) -> bool:
        return self.capacity <= 0xFFFF

    @cached_property
    def _counted(self) -> int:
        return self._blocks * (2 if self._narrow else 4)

    @cached_property
    def _number_at(self) -> int:
        return _padded(self._counted)

    @cached_property
    def _positions_at(self) -> int:
        return self._number_at + (range_float.NBYTES if self.wire == "range8" else 0)

    @cached_property
    def _values_at(self) -> int:
        return _padded(self._positions_at + 2 * self.capacity)

    def _positions(self, rows: UInt8) -> UInt16:
        return rows[:, self._positions_at : self._positions_at + 2 * self.capacity].view(np.uint16)

    def _widened(self, kernels: Kernels, words: Float32 | UInt16) -> Float32:
        if self._code == 0:
            return words.view(np.float32)
        values = np.empty(len(words), np.float32)
        kernels.accumulate_dense(words.view(np.uint16)[None], self._code, 1.0, values)
        return values


def _padded(nbytes: int) -> int:
    return -(-nbytes // 4) * 4
