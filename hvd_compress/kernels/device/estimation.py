"""What thresholds are estimated from, on the device: order statistics, tails, and logarithms of samples."""

from __future__ import annotations

import numpy as np
import torch

from hvd_compress.kernels.device import selection, sums
from hvd_compress.kernels.device.checks import require_tensor
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.parts import whole
from hvd_compress.kernels.device.programs import sparse as programs
from hvd_compress.kernels.protocol import LANES, LOG_ROWS, Moments, join_logarithms


class EstimationDevice:
    """``kth_largest``, ``exceedances`` and ``log_sum`` of tensors."""

    _launcher: Launcher
    _tile: int

    def kth_largest(self, x: torch.Tensor, k: int) -> float:
        """See ``SparsificationKernels.kth_largest``. The host waits once."""
        require_tensor("x", x, torch.float32, self._launcher.device, None)
        if not 1 <= k <= len(x):
            raise ValueError(f"k must be in [1, {len(x)}], not {k}")
        (cut,) = self._launcher.download(selection.kth_largest(self._launcher, self._tile, x, k))
        return float(cut[:1].astype(np.uint32).view(np.float32)[0])

    def exceedances(self, x: torch.Tensor, threshold: float, out: torch.Tensor) -> Moments:
        """See ``SparsificationKernels.exceedances``; both are tensors. The host waits twice, for the count and for the
        moments."""
        limit = float(np.uint32(selection.bits_of(threshold)).view(np.float32))
        require_tensor("x", x, torch.float32, self._launcher.device, None)
        require_tensor("out", out, torch.float32, self._launcher.device, None)
        if len(out) < len(x):
            raise ValueError(f"out has {len(out)} elements, fewer than x, {len(x)}")
        if not len(x):
            return Moments(0, 0.0, 0.0, 0.0)
        tiles = -(-len(x) // self._tile)
        counts = self._launcher.empty(tiles, torch.int64)
        self._launcher.launch(programs.count_above, tiles, x, len(x), limit, counts, TILE=self._tile)
        ends = counts.cumsum(0)
        # Tiles run in any order: were this written to x itself, one could overwrite what another has yet to read.
        above = self._launcher.empty(len(x), torch.float32)
        self._launcher.launch(programs.copy_above, tiles, x, len(x), limit, counts, ends, above, TILE=self._tile)
        (last,) = self._launcher.download(ends[-1:])
        above = above[: int(last[0])]
        out[: len(above)] = above
        return sums.moments(self._launcher, [whole(above)], limit)

    def log_sum(self, x: torch.Tensor) -> tuple[int, float]:
        """See ``SparsificationKernels.log_sum``. The host waits once."""
        require_tensor("x", x, torch.float32, self._launcher.device, None)
        rows = -(-len(x) // LANES)
        chunks = -(-rows // LOG_ROWS)
        products = self._launcher.empty(chunks * LANES, torch.float64)
        totals = self._launcher.zeros(2, torch.int64)
        self._launcher.launch(programs.multiply_significands, chunks, x, len(x), rows, products, totals, CHUNK=LOG_ROWS)
        logarithms, counts = self._launcher.download(products, totals)
        return int(counts[0]), join_logarithms(int(counts[1]), logarithms.reshape(chunks, LANES))
