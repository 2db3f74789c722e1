"""Error feedback and sparsification on the device: ``SparsificationKernels`` for tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from hvd_compress.kernels.device import selection, sums
from hvd_compress.kernels.device.checks import require_below, require_tensor
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.parts import Part, parts_of
from hvd_compress.kernels.device.programs import sparse as programs
from hvd_compress.kernels.protocol import LANES, Float32, Kernels, Moments, Selection, UInt32, workspace

Pieces = Sequence[torch.Tensor]
SAFE_VELOCITY = np.float32(1.5 * 2.0**127)
"""What a velocity may come to; see ``SparsificationKernels.add_momentum``."""


class SparsificationDevice:
    """Add, sample, select, restore and take, with gradients and memories on the device."""

    _launcher: Launcher
    _tile: int
    _host: Kernels

    def add(self, memory: torch.Tensor | None, pieces: Pieces, out: torch.Tensor) -> bool:
        """See ``SparsificationKernels.add``. The host waits once."""
        source, bad = self._sum(memory, pieces, out), self._launcher.zeros(1, torch.int32)
        self._write_sum(source, out, bad)
        return not self._launcher.download(bad)[0][0]

    def add_momentum(
        self,
        momentum: torch.Tensor,
        velocity: torch.Tensor,
        pieces: Pieces,
        beta: float,
        nesterov: bool,
        momentum_out: torch.Tensor,
        velocity_out: torch.Tensor,
    ) -> bool:
        """See ``SparsificationKernels.add_momentum``. The host waits once."""
        parts = parts_of(pieces, self._launcher.device)
        d = len(momentum_out)
        self._require("momentum_out", momentum_out, torch.float32, None)
        for name, tensor in {"momentum": momentum, "velocity": velocity, "velocity_out": velocity_out}.items():
            self._require(name, tensor, torch.float32, d)
        self._check_sum(None, parts, len(pieces), d)
        factor, largest = np.float32(beta), self._launcher.zeros(2, torch.int32)
        for part in parts if pieces else [selection.without_piece(momentum)]:
            place = part.storage, part.begin, part.elements, part.channels, part.space
            self._launcher.launch(
                programs.add_momentum,
                -(-part.elements // self._tile),
                momentum,
                velocity,
                *place,
                float(factor),
                momentum_out,
                velocity_out,
                largest,
                NESTEROV=nesterov,
                TILE=self._tile,
                **part.constants,
            )
        (bits,) = self._launcher.download(largest)
        u, v = bits.view(np.float32)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            coming = factor / (np.float32(1) - factor)
            return bool(v + u * (coming * factor if nesterov else coming) < SAFE_VELOCITY)

    def sample(self, memory: torch.Tensor | None, pieces: Pieces, key: int, lines: int, out: Float32) -> Moments:
        """See ``SparsificationKernels.sample``; ``out`` is on the host, which waits once."""
        if lines < 0:
            raise ValueError(f"lines must be >= 0, not {lines}")
        parts = parts_of(pieces, self._launcher.device)
        d = sum(part.elements for part in parts) if memory is None else len(memory)
        self._check_sum(memory, parts, len(pieces), d)
        all_lines = d // LANES
        count = d if lines >= all_lines else lines * LANES
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be an array on the host, not {type(out).__name__}")
        if len(out) < count:
            raise ValueError(f"out has room for {len(out)} elements, not for {count}")
        source, drawn = selection.Sum(memory, parts), self._launcher.empty(count, torch.float32)
        if lines >= all_lines:
            self._write_sum(source, drawn, self._launcher.zeros(1, torch.int32))
        elif lines:
            self._draw(source, key & 0xFFFFFFFFFFFFFFFF, all_lines, lines, drawn)
        # Of these the host takes all: their magnitudes and moments.
        return self._host.sample(None, self._launcher.download(drawn), 0, count, out)

    def select(
        self,
        memory: torch.Tensor | None,
        pieces: Pieces,
        out: torch.Tensor,
        threshold: float,
        capacity: int,
        indices: UInt32,
        values: Float32,
    ) -> Selection:
        """See ``SparsificationKernels.select``; ``indices`` and ``values`` are on the host.

        The host waits once, and twice if more elements exceed the threshold than there is capacity for.
        """
        limit = selection.bits_of(threshold)
        if capacity < 0:
            raise ValueError(f"capacity must be >= 0, not {capacity}")
        if not len(indices) == len(values) >= workspace(capacity):
            raise ValueError(f"indices and values need {workspace(capacity)} elements each")
        source = self._sum(memory, pieces, out)
        room = workspace(capacity)
        return selection.select(self._launcher, self._tile, source, out, limit, capacity, indices[:room], values[:room])

    def restore(self, out: torch.Tensor, indices: UInt32 | torch.Tensor, values: Float32 | torch.Tensor) -> None:
        """See ``SparsificationKernels.restore``; ``out`` is a tensor, the others are on the host, or each on the
        device. The host does not wait; so ``indices`` on the device are not checked."""
        if len(indices) != len(values):
            raise ValueError(f"indices and values differ in length: {len(indices)} and {len(values)}")
        self._require("out", out, torch.float32, None)
        where, what = self._places(indices, len(out), "out"), self._numbers("values", values)
        tiles = -(-len(indices) // self._tile)
        self._launcher.launch(programs.scatter, tiles, out, where, what, len(indices), TILE=self._tile)

    def take(self, values: torch.Tensor, indices: UInt32 | torch.Tensor, out: Float32 | torch.Tensor) -> None:
        """See ``SparsificationKernels.take``; ``values`` is a tensor, the others are on the host, or each on the
        device. The host waits once for an ``out`` of its own; ``indices`` on the device are not checked."""
        if len(out) != len(indices):
            raise ValueError(f"out has {len(out)} elements, not {len(indices)}")
        self._require("values", values, torch.float32, None)
        where = self._places(indices, len(values), "values")
        on_host = not isinstance(out, torch.Tensor)
        taken = self._launcher.empty(len(indices), torch.float32) if on_host else self._numbers("out", out)
        tiles = -(-len(indices) // self._tile)
        self._launcher.launch(programs.gather, tiles, values, where, taken, len(indices), TILE=self._tile)
        if not isinstance(out, torch.Tensor):
            self._launcher.copy_to_host((taken, out))

    def norm(self, pieces: Pieces, euclidean: bool) -> float:
        """See ``QuantizationKernels.norm``. The host waits once."""
        parts = parts_of(pieces, self._launcher.device)
        if euclidean:
            return math.sqrt(sums.squares(self._launcher, parts))
        return sums.largest(self._launcher, parts, self._tile)

    def _places(self, indices: UInt32 | torch.Tensor, limit: int, of: str) -> torch.Tensor:
        """Return indices of elements of an argument on the device."""
        if isinstance(indices, torch.Tensor):
            self._require("indices", indices, torch.int32, None)
            return indices
        require_below(indices, limit, of)
        return self._launcher.upload(indices)

    def _numbers(self, name: str, numbers: Float32 | torch.Tensor) -> torch.Tensor:
        """Return float32 numbers on the device: an argument itself, or a copy of it."""
        if isinstance(numbers, torch.Tensor):
            self._require(name, numbers, torch.float32, None)
            return numbers
        return self._launcher.upload(numbers)

    def _require(self, name: str, tensor: torch.Tensor, dtype: torch.dtype, n: int | None) -> None:
        require_tensor(name, tensor, dtype, self._launcher.device, n)

    def _sum(self, memory: torch.Tensor | None, pieces: Pieces, out: torch.Tensor) -> selection.Sum:
        """Return memory plus gradient, checked; ``out`` is to receive it."""
        self._require("out", out, torch.float32, None)
        parts = parts_of(pieces, self._launcher.device)
        self._check_sum(memory, parts, len(pieces), len(out))
        if memory is None and not pieces:
            memory = out.zero_()
        return selection.Sum(memory, parts)

    def _check_sum(self, memory: torch.Tensor | None, parts: Sequence[Part], pieces: int, d: int) -> None:
        if memory is not None:
            self._require("memory", memory, torch.float32, d)
        if pieces and (total := sum(part.elements for part in parts)) != d:
            raise ValueError(f"pieces have {total} elements in all, not {d}")

    def _write_sum(self, source: selection.Sum, out: torch.Tensor, bad: torch.Tensor) -> None:
        """Write the sum, and 1 to ``bad`` if it is not finite everywhere."""
        for part, place, constants in source.places():
            tiles = -(-part.elements // self._tile)
            self._launcher.launch(programs.add, tiles, *place, out, bad, TILE=self._tile, **constants)

    def _draw(self, source: selection.Sum, key: int, all_lines: int, lines: int, out: torch.Tensor) -> None:
        """Write the lines that are drawn."""
        rows = self._tile // LANES
        for part, place, constants in source.places():
            begin, last = part.begin // LANES, min((part.end - 1) // LANES, all_lines - 1)
            if begin > last:
                continue  # behind the last whole line
            # Stratum i is lines i * all_lines // lines and up: the strata of the part's first line and of its last.
            first, past = (((line + 1) * lines - 1) // all_lines for line in (begin, last))
            strata = first, past + 1
            self._launcher.launch(
                programs.sample,
                -(-(strata[1] - strata[0]) // rows),
                *place,
                key,
                all_lines,
                lines,
                *strata,
                out,
                ROWS=rows,
                **constants,
            )
