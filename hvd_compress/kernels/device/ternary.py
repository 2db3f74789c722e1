"""Ternary vectors on the device: their codes, and the sum of those that were received."""

from __future__ import annotations

import numpy as np
import torch

from hvd_compress.kernels.device.checks import require_tensor
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.programs import ternary as programs
from hvd_compress.kernels.protocol import LANES, Float32, Int64, SectionMoments, UInt8

GROUP = 32
"""Sections whose moments one instance of a program computes."""


class TernaryDevice:
    """``section_moments``, ``ternarize`` and ``accumulate_ternary``; sections and scales are on the host."""

    _launcher: Launcher
    _tile: int

    def section_moments(self, x: torch.Tensor, ends: Int64) -> SectionMoments:
        """See ``QuantizationKernels.section_moments``; ``x`` is a tensor. The host waits once.

        A section is one thread's for each lane: there should be many, and none long.
        """
        require_tensor("x", x, torch.float32, self._launcher.device, None)
        _check_ends(ends, len(x))
        sections = len(ends)
        largest = self._launcher.empty(sections, torch.float32)
        totals, squares = (self._launcher.empty(sections, torch.float64) for _ in range(2))
        rows = -(-int(np.diff(ends, prepend=0).max(initial=0)) // LANES)
        where = self._launcher.upload(ends)
        arguments = x, where, sections, rows, largest, totals, squares
        self._launcher.launch(programs.section_moments, -(-sections // GROUP), *arguments, GROUP=GROUP)
        return SectionMoments(*self._launcher.download(largest, totals, squares))

    def ternarize(self, x: torch.Tensor, ends: Int64, scales: Float32, key: int, codes: UInt8) -> None:
        """See ``QuantizationKernels.ternarize``; ``x`` is a tensor, ``codes`` on the host, which waits once."""
        d = len(x)
        require_tensor("x", x, torch.float32, self._launcher.device, None)
        if len(codes) != -(-d // 4):
            raise ValueError(f"codes has {len(codes)} elements, not {-(-d // 4)}")
        _check_ends(ends, d)
        if len(scales) != len(ends):
            raise ValueError(f"scales has {len(scales)} elements for {len(ends)} sections")
        where, by = self._launcher.upload(ends), self._launcher.upload(scales)
        packed = self._launcher.empty(len(codes), torch.uint8)
        arguments = x, d, where, len(ends), by, key & 0xFFFFFFFFFFFFFFFF, packed
        tile = self._tile // 4  # bytes, of four elements each
        self._launcher.launch(programs.ternarize, -(-len(codes) // tile), *arguments, TILE=tile)
        self._launcher.copy_to_host((packed, codes))

    def accumulate_ternary(
        self, payloads: UInt8, codes_at: int, ends: Int64, scales: Float32, out: torch.Tensor
    ) -> bool:
        """See ``QuantizationKernels.accumulate_ternary``; ``out`` is a tensor. The host waits once."""
        require_tensor("out", out, torch.float32, self._launcher.device, None)
        d, nbytes = len(out), -(-len(out) // 4)
        if scales.shape != (len(payloads), len(ends)):
            raise ValueError(f"scales has the shape {scales.shape}, not ({len(payloads)}, {len(ends)})")
        if not 0 <= codes_at <= payloads.shape[1] - nbytes:
            raise ValueError(f"codes_at = {codes_at} and the codes exceed payloads of {payloads.shape[1]} bytes")
        _check_ends(ends, d)
        codes = self._launcher.upload(payloads[:, codes_at : codes_at + nbytes].reshape(-1))
        where, by = self._launcher.upload(ends), self._launcher.upload(scales.reshape(-1))
        meaningless = self._launcher.zeros(1, torch.int32)
        arguments = codes, nbytes, len(payloads), d, where, len(ends), by, out, meaningless
        self._launcher.launch(programs.accumulate, -(-d // self._tile), *arguments, TILE=self._tile)
        return not self._launcher.download(meaningless)[0][0]


def _check_ends(ends: Int64, d: int) -> None:
    """Raise ValueError unless ``ends`` ascend to the number of elements."""
    lengths = np.diff(ends, prepend=0)
    if (lengths <= 0).any() or lengths.sum() != d:
        raise ValueError(f"ends must ascend from above 0 to the number of elements, {d}, not {ends}")
