"""Sparse payloads: which elements (positions) and what they are (values), in a size that never depends on data.

After the common header: per block of 65,536 elements the number of entries (uint16, or uint32 when the capacity
exceeds 65,535), padded to 8 bytes; then in-block positions (uint16) x capacity, ascending; then values x capacity as
float32, bfloat16 or float16. The capacity is a multiple of 8. Unused entries are zero. That is 6 bytes an entry with
float32 values and 4 with 16-bit ones, against the usual 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.kernels import BLOCK, WIRES, CorruptPayload, Float32, Kernels, UInt8, UInt32


@dataclass(frozen=True)
class SparseFormat:
    """The layout of the sparse payloads of one bucket. ``wire`` names the type of the values."""

    elements: int
    capacity: int
    wire: str = "float32"

    def __post_init__(self) -> None:
        if self.capacity % 8 or self.capacity <= 0:
            raise ValueError(f"capacity must be a positive multiple of 8, got {self.capacity}")
        if self.wire not in WIRES:
            raise ValueError(f"wire must be one of {WIRES}, got {self.wire!r}")

    @cached_property
    def _code(self) -> int:
        return WIRES.index(self.wire)

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
        """Size of every payload of this format."""
        return self._values_at + self.capacity * (4 if self._code == 0 else 2)

    def encode(
        self, kernels: Kernels, indices: UInt32, values: Float32, memory: Float32 | None, payload: UInt8
    ) -> None:
        """Write the entries (``indices`` ascending) to ``payload`` (uint8, ``nbytes``); put what a 16-bit wire rounds
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
        kernels.pack(
            indices,
            values,
            self._code,
            counts.view(np.uint16) if self._count_bytes == 2 else counts.view(np.uint32),
            payload[self._positions_at : self._values_at].view(np.uint16),
            payload[self._values_at :].view(np.float32)
            if self._code == 0
            else payload[self._values_at :].view(np.uint16),
            memory,
        )

    def decode(self, kernels: Kernels, payloads: UInt8, scale: float, out: Float32) -> Float32:
        """``out`` = the sum of ``scale`` x every row of ``payloads`` (uint8, shape ``(n, nbytes)``), in row order.

        Returns ``out`` (float32, ``elements``).

        Raises:
            CorruptPayload: a payload breaks the format; ``out`` is then untouched.
        """
        if payloads.ndim != 2 or payloads.shape[1] != self.nbytes:
            raise CorruptPayload(f"payloads of shape {payloads.shape}, expected (workers, {self.nbytes})")
        entries = header.check(
            payloads, codec=header.SPARSE + self._code, elements=self.elements, capacity=self.capacity
        )
        kernels.accumulate(
            payloads,
            header.NBYTES,
            self._positions_at,
            self._values_at,
            self._count_bytes,
            self.capacity,
            self._code,
            entries,
            scale,
            out,
        )
        return out
