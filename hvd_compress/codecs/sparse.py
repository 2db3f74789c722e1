"""Sparse payloads: which elements (positions) and what they are (values), in a size that never depends on data.

After the common header: per block of 65,536 elements the number of entries (uint16, or uint32 when the capacity
exceeds 65,535), padded to 8 bytes; then in-block positions (uint16) x capacity, ascending; then values x capacity as
float32, bfloat16 or float16, or (range8) the 16 bytes of a range-based float (``range_float``) and codes of 8 bits x
capacity. The capacity is a multiple of 8. Unused entries are zero. That is 6 bytes an entry with float32 values, 4
with 16-bit ones and 3 with range8, against the usual 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hvd_compress.codecs import header, range_float
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import BLOCK, WIRES, CorruptPayload, Float32, Kernels, UInt8, UInt32

SPARSE_WIRES = (*WIRES, "range8")
"""How the values of sparse payloads travel; the index is the codec in the header, less ``header.SPARSE``."""

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "range8": 1}
"""Bytes of a value on each of these."""


@dataclass(frozen=True)
class SparseFormat:
    """The layout of the sparse payloads of one bucket. ``wire`` names the type of the values."""

    elements: int
    capacity: int
    wire: str = "float32"

    def __post_init__(self) -> None:
        if self.capacity % 8 or self.capacity <= 0:
            raise ValueError(f"capacity must be a positive multiple of 8, got {self.capacity}")
        if self.wire not in SPARSE_WIRES:
            raise ValueError(f"wire must be one of {SPARSE_WIRES}, got {self.wire!r}")

    @cached_property
    def _code(self) -> int:
        return SPARSE_WIRES.index(self.wire)

    @cached_property
    def _count_bytes(self) -> int:
        return 2 if self.capacity <= 0xFFFF else 4

    @cached_property
    def _blocks(self) -> int:
        return -(-self.elements // BLOCK)

    @cached_property
    def _positions_at(self) -> int:
        return header.NBYTES + -(-self._blocks * self._count_bytes // 8) * 8

    @cached_property
    def _values_at(self) -> int:
        return self._positions_at + 2 * self.capacity

    @cached_property
    def nbytes(self) -> int:
        """Return the size of every payload of this format."""
        number = range_float.NBYTES if self.wire == "range8" else 0
        return self._values_at + number + self.capacity * VALUE_BYTES[self.wire]

    def encode(
        self, kernels: Kernels, indices: UInt32, values: Float32, memory: Float32 | None, payload: UInt8
    ) -> None:
        """Write the entries (``indices`` ascending) to ``payload`` (uint8, ``nbytes``); put what the wire rounds
        off back into ``memory`` (float32, ``elements``) unless that is None."""
        payload[: self._positions_at] = 0
        header.write(
            payload,
            codec=header.SPARSE + self._code,
            count=len(indices),
            elements=self.elements,
            capacity=self.capacity,
        )
        counts = payload[header.NBYTES :][: self._blocks * self._count_bytes]
        block_counts = counts.view(np.uint16) if self._count_bytes == 2 else counts.view(np.uint32)
        positions = payload[self._positions_at : self._values_at].view(np.uint16)
        section = payload[self._values_at :]
        if self.wire == "range8":
            unused = np.empty(self.capacity, np.float32)  # the values go another way
            kernels.pack(indices, values, 0, block_counts, positions, unused, None)
            self._encode_range8(kernels, indices, values, memory, section)
        else:
            words = section.view(np.float32) if self._code == 0 else section.view(np.uint16)
            kernels.pack(indices, values, self._code, block_counts, positions, words, memory)

    def _encode_range8(
        self, kernels: Kernels, indices: UInt32, values: Float32, memory: Float32 | None, section: UInt8
    ) -> None:
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        number = range_float.fit(kernels, values, 8, None, low, high)
        number.write(section)
        codes = section[range_float.NBYTES :]
        codes[len(indices) :] = 0
        codes = codes[: len(indices)]
        number.encode(kernels, values, codes)
        if memory is not None:
            decoded = number.decode(kernels, codes, np.empty(len(indices), np.float32))
            kernels.restore(memory, indices, np.subtract(values, decoded, out=decoded))

    def decode(self, kernels: Kernels, payloads: UInt8, scale: float, out: Float32) -> Float32:
        """Write the sum of ``scale`` x every row of ``payloads`` (uint8, ``(n, nbytes)``), in row order, to ``out``.

        Return ``out`` (float32, ``elements``).

        Raises:
            CorruptPayload: a payload breaks the format; ``out`` is then undefined.
        """
        if payloads.ndim != 2 or payloads.shape[1] != self.nbytes:
            raise CorruptPayload(f"payloads of shape {payloads.shape}, expected (workers, {self.nbytes})")
        entries = header.check(
            payloads, codec=header.SPARSE + self._code, elements=self.elements, capacity=self.capacity
        )
        wire = self._code
        if self.wire == "range8":
            payloads, wire = self._widened(kernels, payloads, entries), 0
        kernels.accumulate(
            payloads,
            header.NBYTES,
            self._positions_at,
            self._values_at,
            self._count_bytes,
            self.capacity,
            wire,
            entries,
            scale,
            out,
        )
        return out

    def _widened(self, kernels: Kernels, payloads: UInt8, entries: UInt32) -> UInt8:
        """Return range8 payloads as the same with float32 values."""
        at = self._values_at
        wide = np.empty((len(payloads), at + 4 * self.capacity), np.uint8)
        wide[:, :at] = payloads[:, :at]
        for row, to, n in zip(payloads, wide, entries.tolist(), strict=True):
            number = RangeFloat.read(row[at:], 8)
            number.decode(kernels, row[at + range_float.NBYTES :][:n], to[at:].view(np.float32)[:n])
        return wide
