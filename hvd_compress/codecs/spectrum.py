"""Payloads of pairs of a spectrum: which ones (a bitmap or positions), and what they are (range-based floats).

After the common header, whose entries and capacity count pairs: the 16 bytes of the range-based float
(``range_float``); uint32 block (0: one transform of the whole bucket) and four zero bytes; then, whichever is smaller
for this capacity,

- a bitmap of all pairs, least significant bit first, padded to 8 bytes (codec 32), or
- block counts and in-block positions as in sparse payloads, of pairs (codec 33);

then two codes of N bits for each pair of the capacity, packed from the least significant bit on, padded to 8 bytes.
Unused entries are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hvd_compress.codecs import header, range_float
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import BLOCK, CorruptPayload, Float32, Kernels, Sections, UInt8, UInt32, packed_bytes
from hvd_compress.kernels.fourier import Transform

LARGE = 2.0**64
"""Numbers beyond this are scaled down on the way through the inverse transform, which could overflow otherwise."""

_PREFIX = header.NBYTES + range_float.NBYTES + 8


@dataclass(frozen=True)
class SpectrumFormat:
    """The layout of one bucket's payloads: ``pairs`` in its spectrum, ``capacity`` of them (a multiple of 8) sent."""

    elements: int
    pairs: int
    block: int | None
    capacity: int
    bits: int

    @cached_property
    def _blocks(self) -> int:
        return -(-self.pairs // BLOCK)

    @cached_property
    def _count_bytes(self) -> int:
        """Return the bytes of a block count; 0 stands for a bitmap."""
        width = 2 if self.capacity <= 0xFFFF else 4
        counted = self._blocks * width
        return width if -(-counted // 8) * 8 + 2 * self.capacity < -(-self.pairs // 64) * 8 else 0

    @cached_property
    def _places_at(self) -> int:
        return _PREFIX + -(-self._blocks * self._count_bytes // 8) * 8

    @cached_property
    def _codes_at(self) -> int:
        return self._places_at + (2 * self.capacity if self._count_bytes else -(-self.pairs // 64) * 8)

    @cached_property
    def nbytes(self) -> int:
        """Return the size of every payload of this format."""
        return self._codes_at + -(-packed_bytes(2 * self.capacity, self.bits) // 8) * 8

    @property
    def _codec(self) -> int:
        return header.SPECTRUM + (self._count_bytes > 0)

    def encode(
        self, kernels: Kernels, indices: UInt32, values: Float32, number: RangeFloat, key: int | None, payload: UInt8
    ) -> None:
        """Write the pairs ``values`` at ``indices`` (ascending) to ``payload`` (``nbytes``), coded as ``number``s,
        rounded to nearest or, with a key, at random."""
        n = len(indices)
        payload[:_PREFIX] = 0
        header.write(payload, codec=self._codec, count=n, elements=self.elements, capacity=self.capacity)
        number.write(payload[header.NBYTES :])
        payload[_PREFIX - 8 :][:4].view("<u4")[0] = self.block or 0
        if self._count_bytes:
            payload[_PREFIX : self._places_at] = 0
            counts = payload[_PREFIX:][: self._blocks * self._count_bytes].view(f"<u{self._count_bytes}")
            positions = payload[self._places_at : self._codes_at].view("<u2")
            unused = np.empty(self.capacity, np.float32)  # values go another way than those of sparse payloads
            kernels.pack(indices, np.zeros(n, np.float32), 0, counts, positions, unused, None)
        else:
            kernels.mark(indices, payload[self._places_at : self._codes_at])
        used = packed_bytes(2 * n, self.bits)
        number.encode(kernels, values, payload[self._codes_at :][:used], key)
        payload[self._codes_at + used :] = 0

    def decode(
        self, transform: Transform, payloads: UInt8, scale: float, minuend: Float32 | None, out: Float32
    ) -> Float32:
        """Write the data of the sum of ``scale`` x the spectra of all rows of ``payloads`` (uint8, shape ``(n,
        nbytes)``), in row order, to ``out``; or what that leaves of ``minuend`` (may be ``out``). One inverse transform
        serves all.

        Return ``out`` (float32, ``elements``).

        Raises:
            CorruptPayload: a payload breaks the format; ``out`` is then untouched.
        """
        if payloads.ndim != 2 or payloads.shape[1] != self.nbytes:
            raise CorruptPayload(f"payloads of shape {payloads.shape}, expected (workers, {self.nbytes})")
        entries = header.check(payloads, codec=self._codec, elements=self.elements, capacity=self.capacity)
        block = np.ascontiguousarray(payloads[:, _PREFIX - 8 : _PREFIX]).view("<u8")
        if (block != (self.block or 0)).any():
            raise CorruptPayload(f"a payload has blocks of {block.max()}, expected {self.block or 0}")
        numbers = [RangeFloat.read(row[header.NBYTES :], self.bits) for row in payloads]
        lift = LARGE if max(max(n.high, -n.low) for n in numbers) > LARGE else 1.0
        tables = [number.table * np.float32(scale / lift) for number in numbers]
        sections = Sections(_PREFIX, self._places_at, self._codes_at, self._count_bytes, self.capacity, self.bits)
        transform.synthesize(payloads, sections, entries, tables, lift, minuend, out)
        return out
