"""The selection of elements on the device: those above a threshold, or the largest of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.parts import NO_PIECE, Part
from hvd_compress.kernels.device.programs import sparse as programs
from hvd_compress.kernels.protocol import Float32, Selection, UInt32


def without_piece(memory: torch.Tensor) -> Part:
    """Return all of a bucket, as a part in which there is no gradient: its storage is not read as one."""
    return Part(memory, 0, len(memory), 1, 1, NO_PIECE)


class Sum(NamedTuple):
    """Memory plus gradient, not added yet: what ``load_sum`` of the programs adds up."""

    memory: torch.Tensor | None
    parts: Sequence[Part]

    def places(self) -> Iterator[tuple[Part, tuple[Any, ...], dict[str, Any]]]:
        """Yield every part with the arguments and constants by which programs find its elements."""
        parts = self.parts
        if not parts and self.memory is not None:
            parts = [without_piece(self.memory)]
        for part in parts:
            memory = part.storage if self.memory is None else self.memory  # a program without a memory reads none
            place = memory, part.storage, part.begin, part.elements, part.channels, part.space
            yield part, place, {"HAS_MEMORY": self.memory is not None, **part.constants}


def select(
    launcher: Launcher,
    tile: int,
    source: Sum,
    out: torch.Tensor,
    limit: int,
    capacity: int,
    to_indices: UInt32,
    to_values: Float32,
) -> Selection:
    """Do what ``Kernels.select`` does, with a threshold's bits as the ``limit``.

    While it is not known how many there are, as many elements are set aside as the workspaces have. The host waits for
    the device once, and once more if there are more than ``capacity``.
    """
    room = len(to_indices)
    tiles = [-(-part.elements // tile) for part, _, _ in source.places()]
    state = launcher.zeros(2, torch.int64)  # the elements found; whether one is not finite
    chunks = launcher.empty(2 * sum(tiles), torch.int64)
    indices, values = launcher.empty(room, torch.int32), launcher.empty(room, torch.float32)
    first = 0
    for count, (_, place, constants) in zip(tiles, source.places(), strict=True):
        launcher.launch(
            programs.select,
            count,
            *place,
            out,
            limit,
            room,
            state,
            chunks[2 * first :],
            indices,
            values,
            TILE=tile,
            **constants,
        )
        first += count
    ends = chunks.reshape(sum(tiles), 2)[:, 1].cumsum(0)
    chosen = torch.empty_like(indices), torch.empty_like(values)
    launcher.launch(programs.order, sum(tiles), chunks, ends, indices, values, room, *chosen, TILE=tile)
    counts = launcher.empty_on_host(2, np.int64)
    to = to_indices[:capacity], to_values[:capacity]
    launcher.copy_to_host((state, counts), (chosen[0][:capacity], to[0]), (chosen[1][:capacity], to[1]))
    found, bad = counts.tolist()
    if bad:
        return Selection(0, 0, False)
    if found <= capacity:
        return Selection(found, found, True)
    if found <= room:
        largest = _largest_of(chosen[0][:found], chosen[1][:found], out, capacity)
    else:
        launcher.launch(programs.put_back, sum(tiles), chunks, indices, values, room, out, TILE=tile)
        largest = _move_largest(launcher, tile, out, capacity)
    launcher.copy_to_host(*zip(largest, to, strict=True))
    return Selection(found, capacity, True)


def bits_of(threshold: float) -> int:
    """Return a threshold (>= 0) as the bits of float32; raise ValueError if it is none."""
    if not threshold >= 0:
        raise ValueError(f"threshold must be >= 0, not {threshold}")
    with np.errstate(over="ignore"):
        return int(np.abs(np.float32(threshold)).view(np.uint32))


def kth_largest(launcher: Launcher, tile: int, x: torch.Tensor, k: int) -> torch.Tensor:
    """Return the bits of the ``k``-th largest magnitude of ``x``, and how many of the ``k`` largest have these: int64.

    Eight bits at a time are found by a histogram of the elements that agree in the bits above. The host does not wait.
    """
    cut = launcher.upload(np.array([0, k]))
    counts = launcher.zeros(256, torch.int32)
    for shift in (24, 16, 8, 0):
        launcher.launch(programs.histogram, -(-len(x) // tile), x, len(x), cut, shift, counts, TILE=tile)
        launcher.launch(programs.narrow_cut, 1, counts, cut, shift)
    return cut


def _largest_of(
    indices: torch.Tensor, values: torch.Tensor, out: torch.Tensor, capacity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``capacity`` largest of the candidates that were taken from ``out``, and give it back the others."""
    bits = values.view(torch.int32) & 0x7FFFFFFF
    largest_first = torch.sort(bits, descending=True, stable=True).indices  # ties stay in order of their index
    kept, others = largest_first[:capacity].sort().values, largest_first[capacity:]
    out[indices[others].long() & 0xFFFFFFFF] = values[others]
    return indices[kept], values[kept]


def _move_largest(launcher: Launcher, tile: int, x: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the ``capacity`` largest elements (of equal ones the first) out of the finite ``x``."""
    indices, values = launcher.empty(capacity, torch.int32), launcher.empty(capacity, torch.float32)
    if capacity:
        cut, tiles = kth_largest(launcher, tile, x, capacity), -(-len(x) // tile)
        counts = launcher.empty(2 * tiles, torch.int64)
        launcher.launch(programs.count_largest, tiles, x, len(x), cut, counts, TILE=tile)
        ends = counts.reshape(tiles, 2).cumsum(0)
        launcher.launch(programs.move_largest, tiles, x, len(x), cut, counts, ends, indices, values, TILE=tile)
    return indices, values
