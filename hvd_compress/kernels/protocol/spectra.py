"""The kernels of frequency-domain compression: transforms, pairs of a spectrum, and range-based floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hvd_compress.kernels.protocol.definitions import BLOCK, Float32, Selection, UInt8, UInt32


class RangeCode(NamedTuple):
    """How a range-based float is laid out; ``codecs.range_float`` explains and solves it.

    Magnitudes are the bits of a float32 without its sign; ``grid(i)`` is ``i << (23 - mantissa)``. The positive codes
    1 ... ``positives`` mean the magnitudes ``grid(base)``, ``grid(base + 1)``, ... and the last one ``high``; the
    ``negatives`` codes after them mean the same of the other sign, and the last one ``-low``. Code 0 is zero.
    """

    bits: int
    mantissa: int
    base: int
    positives: int
    negatives: int
    low: float
    """The most negative value (float32), or 0.0."""
    high: float
    """The largest value (float32), or 0.0."""


class Sections(NamedTuple):
    """Where things are in a payload of pairs: offsets of block counts, positions or bitmap, and codes.

    Where the pairs belong say ``capacity`` in-block positions as in ``Kernels.accumulate``; or, if ``count_bytes`` is
    0, a bitmap of whole 64-bit words at ``places_at``. The codes are two for each pair, ``bits`` bits each.
    """

    counts_at: int
    places_at: int
    codes_at: int
    count_bytes: int
    capacity: int
    bits: int


class SpectrumKernels(Protocol):
    """What a kernel set provides for range-based floats and for spectra."""

    def range_encode(self, x: Float32, code: RangeCode, key: int | None, out: UInt8) -> None:
        """Write the codes of ``x``, ``code.bits`` bits each, to ``out``: element i has the bits from ``i * code.bits``
        on, counted from the least significant bit of the first byte. ``out`` has ``ceil(len(x) * bits / 8)`` bytes;
        bits left over are zero.

        Of the two neighbouring code values ``lo <= |x| < hi`` of the sign of ``x``, the upper one is taken if
        ``|x| - lo >= hi - |x|`` (``key`` is None: to nearest, halves away from zero), or if ``(|x| - lo) / (hi -
        lo) > u`` with ``u = (hash32(key, i) >> 8) * 2**-24`` (stochastic); all in float32. What is at the end of its
        sign's range, or beyond it by its magnitude's bits, gets the last code of that sign; code 0 if it has none.
        """
        ...

    def range_decode(self, packed: UInt8, bits: int, table: Float32, out: Float32) -> None:
        """Write ``out[i] = table[code i]``, for as many codes as ``out`` has elements, packed as by ``range_encode``.

        Raise CorruptPayload when a code is not below ``len(table)``; ``out`` is then untouched.
        """
        ...

    def forward(self, x: Float32, block: int, out: Float32) -> None:
        """Write the spectra of the finite ``x`` in blocks of ``block`` elements, which divides their length; not in
        place. ``kernels.fourier`` says what a spectrum is, ``reference.radix4`` in which order it is calculated."""
        ...

    def inverse(self, spectrum: Float32, block: int, scale: float, minuend: Float32 | None, out: Float32) -> None:
        """Invert ``forward``: write ``out = data * scale``, or ``minuend - data * scale`` (``minuend`` may be
        ``out``), every operation rounded to float32. Differences of a magnitude below 2**-126 become +0.0."""
        ...

    def forward_one(self, x: Float32, unit: int, out: Float32) -> None:
        """Write the spectrum of all of the finite ``x``, of any length, as one block; ``unit``, a power of two, is that
        of ``kernels.fourier``. ``out`` has an element more than ``x`` where that is odd. Bits depend on a library."""
        ...

    def inverse_one(self, spectrum: Float32, unit: int, scale: float, minuend: Float32 | None, out: Float32) -> None:
        """Invert ``forward_one``; otherwise as ``inverse``."""
        ...

    def select_pairs(
        self, pairs: Float32, scale: float, threshold: float, capacity: int, indices: UInt32, energies: Float32
    ) -> Selection:
        """Find the pairs (re, im) whose energy exceeds ``threshold`` (>= 0), and of these the ``capacity`` with the
        most (of equal ones those with the lowest index): ``indices[:kept]``, ascending, and ``energies[:kept]``.

        The energy is ``(re * scale)**2 + (im * scale)**2``, every operation rounded to float32, and at most the
        largest finite number; ``pairs`` are finite. ``indices`` and ``energies`` are workspaces of equal length >=
        ``workspace(capacity)``, undefined beyond ``kept``.
        """
        ...

    def gather_pairs(self, pairs: Float32, indices: UInt32, values: Float32) -> tuple[float, float]:
        """Write the pairs at ``indices`` to ``values``; return the least and the largest of them and zero."""
        ...

    def mark(self, indices: UInt32, bitmap: UInt8) -> None:
        """Set the bits of the strictly ascending ``indices``, the least significant of a byte first, and no others."""
        ...

    def synthesize(
        self,
        payloads: UInt8,
        sections: Sections,
        entries: UInt32,
        tables: Sequence[Float32],
        block: int,
        scale: float,
        minuend: Float32 | None,
        out: Float32,
        rest: Float32,
    ) -> None:
        """Sum ``n`` spectra (``payloads``: uint8, shape ``(n, bytes)``), in row order, from +0.0, every addition
        rounded to float32. The sum's first ``len(out)`` numbers go through ``inverse`` to ``out`` (with ``block``,
        ``scale`` and ``minuend`` as there); the others go to ``rest``, as they are.

        Row r has ``entries[r]`` pairs, with codes that mean ``tables[r]``. Everything is checked before anything is
        written, codes too. Raise CorruptPayload if something contradicts itself.
        """
        ...


def packed_bytes(codes: int, bits: int) -> int:
    """Return the bytes that so many packed codes take."""
    return -(-codes * bits // 8)


def check_sections(payloads: UInt8, sections: Sections, entries: UInt32, tables: Sequence[Float32], pairs: int) -> None:
    """Raise ValueError unless the sections lie in the payloads of a spectrum of so many pairs, and there are as many
    entries and tables as payloads."""
    sizes = {
        "counts_at": -(-pairs // BLOCK) * sections.count_bytes,
        "places_at": 2 * sections.capacity if sections.count_bytes else -(-pairs // 64) * 8,
        "codes_at": packed_bytes(2 * sections.capacity, sections.bits),
    }
    for name, size in sizes.items():
        if not 0 <= getattr(sections, name) <= payloads.shape[1] - size:
            raise ValueError(f"{name} and its {size} bytes exceed payloads of {payloads.shape[1]} bytes: {sections}")
    if not len(entries) == len(tables) == len(payloads):
        raise ValueError(f"entries and tables: {len(entries)} and {len(tables)} for {len(payloads)} payloads")


def check_code(code: RangeCode) -> None:
    """Raise ValueError unless the fields of ``code`` can be worked with."""
    if not (4 <= code.bits <= 16 and 0 <= code.mantissa <= 16 and 1 <= code.base <= 1 << (code.mantissa + 8)):
        raise ValueError(f"code is not a range-based float: {code}")
    if min(code.positives, code.negatives) < 0 or code.positives + code.negatives >= 1 << code.bits:
        raise ValueError(f"code has too many values: {code}")
    if not (-np.inf < code.low <= 0 <= code.high < np.inf):
        raise ValueError(f"code has no range around zero: {code}")
