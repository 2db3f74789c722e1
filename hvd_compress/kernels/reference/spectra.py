"""Pairs of a spectrum in NumPy: the specification of the kernels for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.protocol import (
    BLOCK,
    CorruptPayload,
    Float32,
    Sections,
    Selection,
    UInt8,
    UInt32,
    check_sections,
    workspace,
)
from hvd_compress.kernels.reference.radix4 import inverse
from hvd_compress.kernels.reference.range_floats import unpack

Places = NDArray[np.integer[Any]]


def places(row: UInt8, pairs: int, sections: Sections, entries: int) -> Places | None:
    """Return where the entries of a payload belong, ascending; None if it contradicts itself."""
    counts_at, places_at, _, count_bytes, _, _ = sections
    if count_bytes == 0:
        marked = np.flatnonzero(np.unpackbits(row[places_at:][: -(-pairs // 64) * 8], bitorder="little"))
    else:
        blocks = -(-pairs // BLOCK)
        counts = row[counts_at:][: blocks * count_bytes].view(f"<u{count_bytes}").astype(np.int64)
        if counts.sum() != entries:
            return None
        positions = row[places_at:][: 2 * entries].view("<u2").astype(np.int64)
        marked = positions + np.repeat(np.arange(blocks) * BLOCK, counts)
    sound = len(marked) == entries and (marked < pairs).all() and (marked[1:] > marked[:-1]).all()
    return marked if sound else None


class SpectrumReference:
    """``SpectrumKernels`` for pairs of a spectrum."""

    def select_pairs(
        self, pairs: Float32, scale: float, threshold: float, capacity: int, indices: UInt32, energies: Float32
    ) -> Selection:
        if not threshold >= 0:
            raise ValueError(f"threshold must be >= 0, not {threshold}")
        if capacity < 0:
            raise ValueError(f"capacity must be >= 0, not {capacity}")
        if not len(indices) == len(energies) >= workspace(capacity):
            raise ValueError(f"indices and energies need {workspace(capacity)} elements each")
        with np.errstate(over="ignore"):
            limit = np.float32(threshold)
            squares = np.square(pairs * np.float32(scale))
            energy = np.minimum(squares[::2] + squares[1::2], np.finfo(np.float32).max)
        found = np.flatnonzero(energy > limit)
        kept = np.sort(found[np.argsort(-energy[found], kind="stable")[:capacity]])
        indices[: len(kept)] = kept
        energies[: len(kept)] = energy[kept]
        return Selection(len(found), len(kept), True)

    def gather_pairs(self, pairs: Float32, indices: UInt32, values: Float32) -> tuple[float, float]:
        if len(values) != 2 * len(indices):
            raise ValueError(f"values has {len(values)} elements, not {2 * len(indices)}")
        if len(indices) and int(indices.max()) >= len(pairs) // 2:
            raise ValueError(f"indices must be below {len(pairs) // 2}")
        values[:] = pairs.reshape(-1, 2)[indices].reshape(-1)
        return float(values.min(initial=0)), float(values.max(initial=0))

    def mark(self, indices: UInt32, bitmap: UInt8) -> None:
        if (indices[1:] <= indices[:-1]).any() or (len(indices) and int(indices[-1]) >= 8 * len(bitmap)):
            raise ValueError(f"indices must ascend strictly and be below {8 * len(bitmap)}")
        bits = np.zeros(8 * len(bitmap), np.uint8)
        bits[indices] = 1
        bitmap[:] = np.packbits(bits, bitorder="little")

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
        pairs = (len(out) + len(rest)) // 2
        check_sections(payloads, sections, entries, tables, pairs)
        decoded = []
        for r, (row, n, table) in enumerate(zip(payloads, entries.tolist(), tables, strict=True)):
            where = places(row, pairs, sections, n) if n <= sections.capacity else None
            codes = (
                unpack(row[sections.codes_at :], 2 * n, sections.bits) if where is not None else np.zeros(0, np.int64)
            )
            if where is None or (codes >= len(table)).any():
                raise CorruptPayload(f"payload {r}: its {n} entries contradict its places or codes; {sections}")
            decoded.append((where, table[codes].reshape(-1, 2)))
        spectrum = np.zeros((pairs, 2), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for where, values in decoded:
                spectrum[where] += values
        inverse(spectrum.reshape(-1)[: len(out)], block, scale, minuend, out)
        rest[:] = spectrum.reshape(-1)[len(out) :]
