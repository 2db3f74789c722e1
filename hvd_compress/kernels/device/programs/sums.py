"""Sums of squares in float64 over sixteen lanes, in the order of the elements, and maxima; see ``device.sums``."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import load_piece, magnitude_bits


@triton.jit
def load_squares(
    piece, begin, end, first, row, rows_left, channels, space, KIND: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Return the squares in the lines of 16 that are the rows ``row`` from element ``first`` on: float64. Elements
    outside of the piece are zero, which changes no sum."""
    position = first + row[:, None] * 16 + tl.arange(0, 16)[None, :]
    mask = (position >= begin) & (position < end) & (row < rows_left)[:, None]
    if KIND == 0 and not CHANNELS_LAST:  # the interpreter is slow in calls of functions, and rows are many
        x = tl.load(piece + (position - begin), mask, other=0.0)
    else:
        x = load_piece(piece, position - begin, mask, channels, space, KIND, CHANNELS_LAST)
    value = x.to(tl.float64)
    return value * value


@triton.jit
def sum_blocks(
    piece,
    begin,
    end,
    first,
    rows,
    channels,
    space,
    sums,
    block_rows,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Sum every lane of every block of rows from zero."""
    block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    total = tl.zeros([GROUP, 16], tl.float64)
    for r in range(block_rows):
        total += load_squares(
            piece, begin, end, first, block * block_rows + r, rows, channels, space, KIND, CHANNELS_LAST
        )
    at = sums + block[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(at, total, (block * block_rows < rows)[:, None])


@triton.jit
def exponent(x):
    """Return the biased exponent of float64, which are not negative."""
    return x.to(tl.int64, bitcast=True) >> 52


@triton.jit
def step_blocks(
    piece,
    begin,
    end,
    first,
    rows,
    channels,
    space,
    before,
    sums,
    steps,
    block_rows,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Find by how much every block moves a lane that stays within one power of two, from an even and an odd number.

    ``before`` is about what the lanes hold before each block, ``sums`` about what the block adds: any order of adding
    up to 2**32 numbers that are not negative is right to a factor of ``1 +- 2**-20``. ``steps`` has two rows of 16 for
    each block, from even and from odd. NaN says that the lane may leave its power of two.
    """
    block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    mask = (block * block_rows < rows)[:, None]
    lane = tl.arange(0, 16)[None, :]
    start = tl.load(before + block[:, None] * 16 + lane, mask, 0.0)
    added = tl.load(sums + block[:, None] * 16 + lane, mask, 0.0)
    low = exponent(start * (1.0 - 1.0 / 1048576.0))
    high = exponent((start + added) * (1.0 + 1.0 / 1048576.0))
    steady = (low == high) & (low > 0) & (low < 2047)
    even_base = (tl.where(steady, low, 1023) << 52).to(tl.float64, bitcast=True)
    odd_base = (even_base.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
    even, odd = even_base, odd_base
    for r in range(block_rows):
        square = load_squares(
            piece, begin, end, first, block * block_rows + r, rows, channels, space, KIND, CHANNELS_LAST
        )
        even += square
        odd += square
    at = steps + block[:, None] * 32 + lane
    tl.store(at, tl.where(steady, even - even_base, float("nan")), mask)
    tl.store(at + 16, tl.where(steady, odd - odd_base, float("nan")), mask)


@triton.jit
def chain_blocks(
    piece,
    begin,
    end,
    first,
    rows,
    channels,
    space,
    sums,
    steps,
    lanes,
    block_rows,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Go through the blocks in order, and add their squares one by one where a lane may leave its power of two.

    A lane that is zero, infinite or NaN becomes what the block's own sum is, or what that adds to it.
    """
    lane = tl.arange(0, 16)
    zero = tl.zeros([1], tl.int64)
    total = tl.load(lanes + lane)
    for block in range((rows + block_rows - 1) // block_rows):
        special = (total == 0.0) | (exponent(total) == 2047)
        even = tl.load(steps + block * 32 + lane)
        odd = tl.load(steps + block * 32 + 16 + lane)
        step = tl.where((total.to(tl.int64, bitcast=True) & 1) == 0, even, odd)
        after = total + tl.where(special, tl.load(sums + block * 16 + lane), step)
        if tl.min((special | (step == step)).to(tl.int32), 0) == 0:
            for r in range(block_rows):
                row = zero + block * block_rows + r
                x = load_squares(piece, begin, end, first, row, rows, channels, space, KIND, CHANNELS_LAST)
                total += tl.sum(x, 0)  # of one row
            after = total  # where a lane is known, its squares one by one give the same
        total = after
    tl.store(lanes + lane, total)


@triton.jit
def largest_bits(
    piece,
    n,
    channels,
    space,
    largest,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Find the bits of the largest magnitude: NaN and infinity count as the largest."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    bits = magnitude_bits(load_piece(piece, i, i < n, channels, space, KIND, CHANNELS_LAST))
    tl.atomic_max(largest, tl.max(bits, 0), sem="relaxed")
