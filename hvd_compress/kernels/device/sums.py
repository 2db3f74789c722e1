"""Sums of squares on the device, in float64 over sixteen lanes, in the order that ``Moments`` specifies; and maxima.

A lane adds d / 16 squares one after the other, and every addition rounds; no other order gives the same bits. But
squares are not negative, so a lane only grows, and there are few powers of two that it passes. Between two of them it
is a whole number of units in the last place, which do not change, and adding x moves it by x rounded to such units:
the same wherever it is, but for a tie, which goes to the even number. So the rows are cut into blocks, and

1. every block is summed by itself, which says about where each lane is before each block;
2. where a lane surely stays within a power of two, the block's squares are added one by one to that power, and to the
   next (odd) number: the two differences are how far the block moves an even and an odd lane;
3. one pass over the blocks, in order, adds these differences; all of that is exact. Where a lane may pass a power of
   two, and that is rare, the squares of the block are added one by one.

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
from hvd_compress.kernels.protocol import LANES, fold_lanes

GROUP = 32
"""Blocks that one instance of a program works on."""


def squares(launcher: Launcher, parts: Sequence[Part]) -> float:
    """Return the sum of the squares of all ``parts``, concatenated. The host waits for the device once."""
    lanes = launcher.zeros(LANES, torch.float64)
    for part in parts:
        _add_part(launcher, part, lanes)
    (sums,) = launcher.download(lanes)
    with np.errstate(over="ignore", invalid="ignore"):
        return fold_lanes(sums)


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


def _add_part(launcher: Launcher, part: Part, lanes: torch.Tensor) -> None:
    """Add the squares of one part to the lanes, which hold those of all parts before it."""
    first = part.begin - part.begin % LANES
    rows = -(-(part.end - first) // LANES)
    block_rows = min(max(8, 1 << (math.isqrt(rows) - 1).bit_length()), 1024)
    blocks = -(-rows // block_rows)
    place = part.storage, part.begin, part.end, first, rows, part.channels, part.space
    sums = launcher.empty(blocks * LANES, torch.float64)
    steps = launcher.empty(blocks * 2 * LANES, torch.float64)
    instances = -(-blocks // GROUP)
    launcher.launch(programs.sum_blocks, instances, *place, sums, block_rows, GROUP=GROUP, **part.constants)
    before = torch.cat([lanes, sums[:-LANES]]).reshape(blocks, LANES).cumsum(0)
    launcher.launch(
        programs.step_blocks, instances, *place, before, sums, steps, block_rows, GROUP=GROUP, **part.constants
    )
    launcher.launch(programs.chain_blocks, 1, *place, sums, steps, lanes, block_rows, **part.constants)
