"""Frequencies on the device: transforms by PyTorch, pairs of a spectrum, and range-based floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from hvd_compress.kernels.device import selection
from hvd_compress.kernels.device.checks import require_below, require_tensor
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.parts import whole
from hvd_compress.kernels.device.payloads import CHUNK, block_ends
from hvd_compress.kernels.device.programs import payloads as payload_programs
from hvd_compress.kernels.device.programs import spectra as programs
from hvd_compress.kernels.fourier import check_block
from hvd_compress.kernels.protocol import (
    BLOCK,
    CorruptPayload,
    Float32,
    RangeCode,
    Sections,
    Selection,
    UInt8,
    UInt32,
    check_code,
    check_sections,
    packed_bytes,
    workspace,
)

AT_ONCE = 2**24
"""Elements that are transformed at a time: a transform needs two more arrays of that many."""


class SpectrumDevice:
    """``SpectrumKernels`` for tensors.

    Transforms are ``torch.fft``'s (cuFFT), in float32, and so not the reference's to the last bit. ``error_bound`` says
    how near they are.
    """

    _launcher: Launcher
    _tile: int

    def forward(self, x: torch.Tensor, block: int, out: torch.Tensor) -> None:
        """See ``SpectrumKernels.forward``; both are tensors. The host does not wait."""
        self._require_blocks(x, block, out)
        self._forward(x.reshape(-1, block), block, out.reshape(-1, block))

    def inverse(
        self, spectrum: torch.Tensor, block: int, scale: float, minuend: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """See ``SpectrumKernels.inverse``; all are tensors. The host does not wait."""
        self._require_blocks(spectrum, block, out)
        self._inverse(spectrum.reshape(-1, block), block, scale, minuend, out, block)

    def forward_one(self, x: torch.Tensor, unit: int, out: torch.Tensor) -> None:
        """See ``SpectrumKernels.forward_one``; both are tensors. The host does not wait."""
        self._require_floats("x", x, None)
        self._require_floats("out", out, 2 * ((len(x) + 1) // 2))
        self._forward(x.reshape(1, -1), unit, out.reshape(1, -1))

    def inverse_one(
        self, spectrum: torch.Tensor, unit: int, scale: float, minuend: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """See ``SpectrumKernels.inverse_one``; all are tensors. The host does not wait."""
        self._require_floats("out", out, None)
        self._require_floats("spectrum", spectrum, 2 * ((len(out) + 1) // 2))
        self._inverse(spectrum.reshape(1, -1), unit, scale, minuend, out, len(out))

    def select_pairs(
        self,
        pairs: torch.Tensor,
        scale: float,
        threshold: float,
        capacity: int,
        indices: UInt32,
        energies: Float32,
    ) -> Selection:
        """See ``SpectrumKernels.select_pairs``; ``pairs`` is a tensor, the workspaces are on the host. The host waits
        once, and twice if more is found than there is capacity for."""
        limit = selection.bits_of(threshold)
        if capacity < 0:
            raise ValueError(f"capacity must be >= 0, not {capacity}")
        room = workspace(capacity)
        if not len(indices) == len(energies) >= room:
            raise ValueError(f"indices and energies need {room} elements each")
        self._require_floats("pairs", pairs, None)
        n = len(pairs) // 2
        found = self._launcher.empty(n, torch.float32)
        arguments = pairs, n, float(np.float32(scale)), found
        self._launcher.launch(programs.energies, -(-n // self._tile), *arguments, TILE=self._tile)
        source = selection.Sum(None, [whole(found)] if n else [])
        return selection.select(
            self._launcher, self._tile, source, found, limit, capacity, indices[:room], energies[:room]
        )

    def gather_pairs(self, pairs: torch.Tensor, indices: UInt32, values: torch.Tensor) -> tuple[float, float]:
        """See ``SpectrumKernels.gather_pairs``; ``indices`` are on the host, the others are tensors. The host waits
        once."""
        self._require_floats("pairs", pairs, None)
        self._require_floats("values", values, 2 * len(indices))
        require_below(indices, len(pairs) // 2, "pairs")
        n = len(values)
        ends = self._launcher.zeros(2, torch.float32)
        if n:
            where = self._launcher.upload(indices)
            self._launcher.launch(programs.gather, -(-n // self._tile), pairs, where, n, values, TILE=self._tile)
            ends = torch.stack(torch.aminmax(values))
        low, high = self._launcher.download(ends)[0].tolist()
        return min(low, 0.0), max(high, 0.0)

    def range_encode(self, x: torch.Tensor, code: RangeCode, key: int | None, out: UInt8) -> None:
        """See ``SpectrumKernels.range_encode``; ``x`` is a tensor, ``out`` on the host, which waits once."""
        check_code(code)
        self._require_floats("x", x, None)
        n, nbytes = len(x), packed_bytes(len(x), code.bits)
        if len(out) != nbytes:
            raise ValueError(f"out has {len(out)} bytes, not {nbytes}")
        low, high = (int(bits) for bits in np.abs(np.array([code.low, code.high], np.float32)).view(np.uint32))
        numbers = code.bits, 23 - code.mantissa, code.base, code.positives, code.negatives, low, high
        packed, tile = self._launcher.empty(nbytes, torch.uint8), self._tile // 4  # a byte may need three codes
        self._launcher.launch(
            programs.range_encode,
            -(-nbytes // tile),
            x,
            n,
            (key or 0) & 0xFFFFFFFFFFFFFFFF,
            *numbers,
            nbytes,
            packed,
            KEYED=key is not None,
            SPAN=8 // code.bits if 8 % code.bits == 0 else 7 // code.bits + 2,
            TILE=tile,
        )
        self._launcher.copy_to_host((packed, out))

    def synthesize(
        self,
        payloads: UInt8,
        sections: Sections,
        entries: UInt32,
        tables: Sequence[Float32],
        block: int,
        scale: float,
        minuend: torch.Tensor | None,
        out: torch.Tensor,
        rest: torch.Tensor,
    ) -> None:
        """See ``SpectrumKernels.synthesize``; the spectra are on the host as they were received, ``minuend``, ``out``
        and ``rest`` are tensors. The host waits once, for the check."""
        self._require_floats("out", out, None)
        self._require_floats("rest", rest, None)
        spectrum = self._summed(payloads, sections, entries, tables, (len(out) + len(rest)) // 2)
        self.inverse(spectrum[: len(out)], block, scale, minuend, out)
        rest[:] = spectrum[len(out) :]

    def _forward(self, rows: torch.Tensor, unit: int, out: torch.Tensor) -> None:
        """Write the spectrum of every row."""
        n = rows.shape[1]
        at_once = max(1, AT_ONCE // max(n, 1))
        for first in range(0, len(rows), at_once):
            x, spectrum = rows[first : first + at_once], out[first : first + at_once]
            y = torch.view_as_real(torch.fft.rfft(x * (1 / unit)))
            pairs = spectrum.reshape(len(x), -1, 2)
            torch.mul(y[:, 1 : pairs.shape[1]], math.sqrt(2 * unit / n), out=pairs[:, 1:])
            pairs[:, 0, 0] = y[:, 0, 0] * math.sqrt(unit / n)
            pairs[:, 0, 1] = y[:, -1, 0] * math.sqrt(unit / n) if n % 2 == 0 else 0.0

    def _inverse(
        self,
        rows: torch.Tensor,
        unit: int,
        scale: float,
        minuend: torch.Tensor | None,
        out: torch.Tensor,
        n: int,
    ) -> None:
        """Write the data of every row's spectrum, ``n`` elements each."""
        if minuend is not None:
            self._require_floats("minuend", minuend, len(out))
        at_once = max(1, AT_ONCE // max(n, 1))
        factors = float(np.float32(math.sqrt(unit / n))) if n else 1.0, float(np.float32(scale))
        for first in range(0, len(rows), at_once):
            spectrum = rows[first : first + at_once]
            pairs = spectrum.reshape(len(spectrum), -1, 2)
            y = self._launcher.zeros(len(spectrum) * 2 * (n // 2 + 1), torch.float32).reshape(len(spectrum), -1, 2)
            torch.mul(pairs[:, 1:], math.sqrt(0.5), out=y[:, 1 : pairs.shape[1]])
            y[:, 0, 0] = pairs[:, 0, 0]
            if n % 2 == 0:
                y[:, -1, 0] = pairs[:, 0, 1]
            x = torch.fft.irfft(torch.view_as_complex(y), n, norm="forward").reshape(-1)
            begin, end = first * n, first * n + len(x)
            held = x if minuend is None else minuend[begin:end]
            self._launcher.launch(
                programs.finish_inverse,
                -(-len(x) // self._tile),
                x,
                len(x),
                *factors,
                held,
                out[begin:end],
                HAS_MINUEND=minuend is not None,
                TILE=self._tile,
            )

    def _summed(
        self, payloads: UInt8, sections: Sections, entries: UInt32, tables: Sequence[Float32], pairs: int
    ) -> torch.Tensor:
        """Return the sum of the spectra in the payloads, after all checks."""
        check_sections(payloads, sections, entries, tables, pairs)
        launcher, tile, rows, stride = self._launcher, self._tile, len(payloads), payloads.shape[1]
        _, places_at, codes_at, count_bytes, capacity, bits = sections
        if (entries > capacity).any():
            raise _contradiction(int(np.argmax(entries > capacity)), entries, sections)
        bytes_ = launcher.upload(payloads.reshape(-1))
        values = launcher.upload(np.concatenate([np.empty(0, np.float32), *tables]))
        value_ends = launcher.upload(np.cumsum([len(table) for table in tables], dtype=np.int64))
        used = launcher.upload(entries.astype(np.int64))
        corrupt = launcher.full(1, rows, torch.int32)
        tiles = -(-2 * capacity // tile)
        checked = bytes_, stride, codes_at, used, value_ends, bits, tiles, corrupt
        launcher.launch(programs.check_codes, rows * tiles, *checked, TILE=tile)
        if count_bytes:
            return self._placed(payloads, sections, entries, pairs, (bytes_, values, value_ends, corrupt))
        marks = -(-pairs // 64) * 64
        tiles = -(-marks // tile)
        counts = launcher.empty(rows * tiles, torch.int64)
        arguments = bytes_, stride, places_at, marks, pairs, tiles, counts, corrupt
        launcher.launch(programs.count_marks, rows * tiles, *arguments, TILE=tile)
        ends = counts.reshape(rows, tiles).cumsum(1)
        totals = ends[:, -1] if tiles else launcher.zeros(rows, torch.int64)
        first, found = launcher.download(corrupt, totals)
        bad = found != entries
        _refuse(min(int(first[0]), int(np.argmax(bad)) if bad.any() else rows), entries, sections)
        spectrum = launcher.empty(2 * pairs, torch.float32)
        launcher.launch(
            programs.sum_marked,
            -(-pairs // tile),
            bytes_,
            stride,
            rows,
            places_at,
            codes_at,
            bits,
            pairs,
            tiles,
            counts,
            ends,
            values,
            value_ends,
            spectrum,
            TILE=tile,
        )
        return spectrum

    def _placed(
        self,
        payloads: UInt8,
        sections: Sections,
        entries: UInt32,
        pairs: int,
        uploaded: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Do what ``_summed`` does with positions instead of bitmaps."""
        launcher, rows, stride = self._launcher, len(payloads), payloads.shape[1]
        counts_at, places_at, codes_at, count_bytes, capacity, bits = sections
        bytes_, values, value_ends, corrupt = uploaded
        blocks = -(-pairs // BLOCK)
        ends = launcher.upload(block_ends(payloads, counts_at, count_bytes, pairs, capacity, entries).reshape(-1))
        arguments = bytes_, stride, places_at, ends, blocks, pairs, corrupt
        launcher.launch(payload_programs.check_positions, rows * blocks, *arguments, TILE=CHUNK)
        _refuse(int(launcher.download(corrupt)[0][0]), entries, sections)
        spectrum = launcher.zeros(2 * pairs, torch.float32)
        place = bytes_, stride, rows, places_at, codes_at, bits, ends, blocks
        launcher.launch(programs.add_placed, blocks, *place, values, value_ends, spectrum, TILE=CHUNK)
        return spectrum

    def _require_floats(self, name: str, tensor: torch.Tensor, n: int | None) -> None:
        require_tensor(name, tensor, torch.float32, self._launcher.device, n)

    def _require_blocks(self, x: torch.Tensor, block: int, out: torch.Tensor) -> None:
        check_block(block)
        self._require_floats("x", x, None)
        self._require_floats("out", out, None)
        if len(x) != len(out) or len(x) % block:
            raise ValueError(f"x and out have {len(x)} and {len(out)} elements, not blocks of {block}")


def error_bound(length: int) -> float:
    """Return by how much, relative to its Euclidean norm, the data or the spectrum of a block of so many elements may
    differ from what the reference gives: ``4 * 2**-24 * (2 + log2(length))``, one way.

    Either is within half of that of the exact result.
    """
    return 4 * 2.0**-24 * (2 + math.log2(max(length, 1)))


def _refuse(row: int, entries: UInt32, sections: Sections) -> None:
    """Raise CorruptPayload if this is a payload's number."""
    if row < len(entries):
        raise _contradiction(row, entries, sections)


def _contradiction(row: int, entries: UInt32, sections: Sections) -> CorruptPayload:
    return CorruptPayload(f"payload {row}: its {entries[row]} entries contradict its places or codes; {sections}")
