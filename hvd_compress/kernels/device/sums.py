"""Moments on the device: sums in float64, over sixteen lanes, in the order that ``Moments`` specifies.

A lane adds d / 16 numbers one after the other, and every addition rounds; no other order gives the same bits. But the
numbers are not negative, so a lane only grows, and there are few powers of two that it passes. Between two of them it
is a whole number of units in the last place, which do not change, and adding x moves it by x rounded to such units:
the same wherever it is, but for a tie, which goes to the even number. So the rows are cut into blocks, and

1. every block is summed by itself, which says about where each lane is before each block;
2. where a lane surely stays within a power of two, the block's elements are added one by one to that power, and to the
   next (odd) number: the two differences are how far the block moves an even and an odd lane;
3. one pass over the blocks, in order, adds these differences; all of that is exact. Where a lane may pass a power of
   two, and that is rare, the elements of the block are added one by one.

Steps 1 and 2 read the elements once each, all blocks at a time; step 3 is short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.parts import Part
from hvd_compress.kernels.device.programs import sums as programs
from hvd_compress.kernels.protocol import LANES, Moments, fold_lanes

GROUP = 32
"""Blocks that one instance of a program works on."""


def moments(launcher: Launcher, parts: Sequence[Part], offset: float = 0.0) -> Moments:
    """Return the moments of what the magnitudes in ``parts``, concatenated, exceed ``offset`` (a float32) by.

    All of them do exceed it, or it is zero. The host waits for the device once.
    """
    lanes = launcher.zeros(2 * LANES, torch.float64)
    largest = launcher.zeros(1, torch.int32)
    for part in filter(lambda part: part.elements, parts):
        _add_part(launcher, part, offset, lanes, largest)
    sums, bits = launcher.download(lanes, largest)
    with np.errstate(over="ignore", invalid="ignore"):
        total, squares = (fold_lanes(half) for half in sums.reshape(2, LANES))
    count = sum(part.elements for part in parts)
    top = np.float64(bits.view(np.float32)[0]) - offset if count else 0.0
    with np.errstate(over="ignore"):
        return Moments(count, total, squares, float(np.float32(top)))


def largest(launcher: Launcher, parts: Sequence[Part], tile: int) -> float:
    """Return the largest magnitude in ``parts``, by its bits: infinity and then NaN win. The host waits once."""
    bits = launcher.zeros(1, torch.int32)
    for part in parts:
        launcher.launch(
            programs.largest_bits,
            -(-part.elements // tile),
            part.storage,
            part.elements,
            part.channels,
            part.space,
            bits,
            TILE=tile,
            **part.constants,
        )
    (found,) = launcher.download(bits)
    return float(found.view(np.float32)[0])


def _add_part(launcher: Launcher, part: Part, offset: float, lanes: torch.Tensor, largest: torch.Tensor) -> None:
    """Add the elements of one part to the lanes, which hold the sums and then the squares of all parts before it."""
    first = part.begin - part.begin % LANES
    rows = -(-(part.end - first) // LANES)
    block_rows = min(max(8, 1 << (math.isqrt(rows) - 1).bit_length()), 1024)
    blocks = -(-rows // block_rows)
    place = part.storage, part.begin, part.end, first, rows, part.channels, part.space, offset
    sums = launcher.empty(blocks * 2 * LANES, torch.float64)
    steps = launcher.empty(blocks * 4 * LANES, torch.float64)
    instances = -(-blocks // GROUP)
    launcher.launch(programs.sum_blocks, instances, *place, sums, largest, block_rows, GROUP=GROUP, **part.constants)
    in_front = torch.cat([lanes, sums[: -2 * LANES]])
    before = in_front.reshape(blocks, 2 * LANES).cumsum(0)
    launcher.launch(
        programs.step_blocks, instances, *place, before, sums, steps, block_rows, GROUP=GROUP, **part.constants
    )
    launcher.launch(programs.chain_blocks, 1, *place, sums, steps, lanes, block_rows, **part.constants)
