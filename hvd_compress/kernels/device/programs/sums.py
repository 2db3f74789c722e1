"""Sums in float64 over sixteen lanes, in the order of the elements; see ``device.sums``."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import MAGNITUDE, load_piece, magnitude_bits


@triton.jit
def load_row(
    piece, begin, end, first, row, rows_left, channels, space, offset, KIND: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Return the lines of 16 that are the rows ``row`` from element ``first`` on, as magnitudes: their bits, and what
    exceeds ``offset``, float64. Elements outside of the piece are zero, which changes no sum."""
    position = first + row[:, None] * 16 + tl.arange(0, 16)[None, :]
    mask = (position >= begin) & (position < end) & (row < rows_left)[:, None]
    if KIND == 0 and not CHANNELS_LAST:  # the interpreter is slow in calls of functions, and rows are many
        x = tl.load(piece + (position - begin), mask, other=0.0)
    else:
        x = load_piece(piece, position - begin, mask, channels, space, KIND, CHANNELS_LAST)
    bits = x.to(tl.int32, bitcast=True) & MAGNITUDE
    value = bits.to(tl.float32, bitcast=True).to(tl.float64)
    return bits, tl.where(mask, value - offset, 0.0)


@triton.jit
def sum_blocks(
    piece,
    begin,
    end,
    first,
    rows,
    channels,
    space,
    offset,
    sums,
    largest,
    block_rows,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Sum every lane of every block of rows, and the squares, each from zero; find the largest magnitude's bits."""
    block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    total = tl.zeros([GROUP, 16], tl.float64)
    squares = tl.zeros([GROUP, 16], tl.float64)
    top = tl.zeros([GROUP, 16], tl.int32)
    for r in range(block_rows):
        bits, x = load_row(
            piece, begin, end, first, block * block_rows + r, rows, channels, space, offset, KIND, CHANNELS_LAST
        )
        total += x
        squares += x * x
        top = tl.maximum(top, bits)
    mask = (block * block_rows < rows)[:, None]
    at = sums + block[:, None] * 32 + tl.arange(0, 16)[None, :]
    tl.store(at, total, mask)
    tl.store(at + 16, squares, mask)
    tl.atomic_max(largest, tl.max(tl.max(top, 1), 0), sem="relaxed")


@triton.jit
def exponent(x):
    """Return the biased exponent of float64, which are not negative."""
    return x.to(tl.int64, bitcast=True) >> 52


@triton.jit
def step_bases(before, sums):
    """Return whether a lane surely stays within one power of two while a block is added, and that power.

    ``before`` is about what the lane holds before the block, ``sums`` about what the block adds. Any order of adding
    up to 2**32 numbers that are not negative is right to a factor of ``1 +- 2**-20``.
    """
    low = exponent(before * (1.0 - 1.0 / 1048576.0))
    high = exponent((before + sums) * (1.0 + 1.0 / 1048576.0))
    steady = (low == high) & (low > 0) & (low < 2047)
    return steady, (tl.where(steady, low, 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def step_blocks(
    piece,
    begin,
    end,
    first,
    rows,
    channels,
    space,
    offset,
    before,
    sums,
    steps,
    block_rows,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Find by how much every block moves a lane that stays within one power of two, from an even and an odd number.

    ``steps`` has four rows of 16 for each block: of the sums, from even and odd, and of the squares. NaN says that
    the lane may leave its power of two.
    """
    block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    mask = (block * block_rows < rows)[:, None]
    at = block[:, None] * 32 + tl.arange(0, 16)[None, :]
    total_steady, total_base = step_bases(tl.load(before + at, mask, 0.0), tl.load(sums + at, mask, 0.0))
    squares_steady, squares_base = step_bases(tl.load(before + at + 16, mask, 0.0), tl.load(sums + at + 16, mask, 0.0))
    total_odd = (total_base.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
    squares_odd = (squares_base.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
    a, b, c, d = total_base, total_odd, squares_base, squares_odd
    for r in range(block_rows):
        _, x = load_row(
            piece, begin, end, first, block * block_rows + r, rows, channels, space, offset, KIND, CHANNELS_LAST
        )
        square = x * x
        a += x
        b += x
        c += square
        d += square
    at = steps + block[:, None] * 64 + tl.arange(0, 16)[None, :]
    tl.store(at, tl.where(total_steady, a - total_base, float("nan")), mask)
    tl.store(at + 16, tl.where(total_steady, b - total_odd, float("nan")), mask)
    tl.store(at + 32, tl.where(squares_steady, c - squares_base, float("nan")), mask)
    tl.store(at + 48, tl.where(squares_steady, d - squares_odd, float("nan")), mask)


@triton.jit
def advance(lane, sums, even, odd):
    """Return what a lane is after a block, where that is known without its elements; and whether it is.

    A lane that is zero, infinite or NaN becomes what the block's own sum is, or what that adds to it.
    """
    special = (lane == 0.0) | ((lane.to(tl.int64, bitcast=True) >> 52) == 2047)
    step = tl.where((lane.to(tl.int64, bitcast=True) & 1) == 0, even, odd)
    return lane + tl.where(special, sums, step), special | (step == step)


@triton.jit
def chain_blocks(
    piece,
    begin,
    end,
    first,
    rows,
    channels,
    space,
    offset,
    sums,
    steps,
    lanes,
    block_rows,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Go through the blocks in order, and add their elements one by one where a lane may leave its power of two."""
    lane = tl.arange(0, 16)
    zero = tl.zeros([1], tl.int64)
    total = tl.load(lanes + lane)
    squares = tl.load(lanes + 16 + lane)
    for block in range((rows + block_rows - 1) // block_rows):
        at = sums + block * 32 + lane
        step = steps + block * 64 + lane
        new_total, total_known = advance(total, tl.load(at), tl.load(step), tl.load(step + 16))
        new_squares, squares_known = advance(squares, tl.load(at + 16), tl.load(step + 32), tl.load(step + 48))
        if tl.min((total_known & squares_known).to(tl.int32), 0) == 0:
            for r in range(block_rows):
                row = zero + block * block_rows + r
                _, x = load_row(piece, begin, end, first, row, rows, channels, space, offset, KIND, CHANNELS_LAST)
                x = tl.sum(x, 0)  # of one row
                total += x
                squares += x * x
            # Where a lane is known, its elements one by one give the same.
            new_total = total
            new_squares = squares
        total = new_total
        squares = new_squares
    tl.store(lanes + lane, total)
    tl.store(lanes + 16 + lane, squares)


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
