"""Ternary codes, four to a byte."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import hash32, magnitude_bits, positions


@triton.jit
def section_of(ends, sections, i):
    """Return the section of each element: the first that ends behind it, found by bisection."""
    low = tl.zeros_like(i)
    high = low + (sections - 1)
    left = sections
    while left > 0:
        middle = (low + high) // 2
        beyond = tl.load(ends + middle) <= i
        low = tl.where(beyond & (low < high), middle + 1, low)
        high = tl.where(beyond, high, middle)
        left = left // 2
    return low


@triton.jit
def fold(lanes, GROUP: tl.constexpr):
    """Return the sums of rows of sixteen lanes, added by halves."""
    for half in tl.static_range(4):
        lanes = tl.sum(tl.reshape(lanes, [GROUP, 2, 8 >> half]), 1)
    return tl.reshape(lanes, [GROUP])


@triton.jit(do_not_specialize=["sections", "rows"])
def section_moments(x, ends, sections, rows, largest, totals, squares, GROUP: tl.constexpr):
    """Write the moments of a group of sections, of which none has more than ``rows`` lines."""
    section = positions(GROUP)
    known = section < sections
    begin = tl.load(ends + section - 1, known & (section > 0), 0)
    length = tl.load(ends + section, known, 0) - begin
    most = tl.zeros([GROUP, 16], tl.int32)
    total = tl.zeros([GROUP, 16], tl.float64)
    square = tl.zeros([GROUP, 16], tl.float64)
    for row in range(rows):
        position = tl.cast(row, tl.int64) * 16 + tl.arange(0, 16)[None, :]
        value = tl.load(x + begin[:, None] + position, position < length[:, None], 0.0)
        most = tl.maximum(most, magnitude_bits(value))
        wide = value.to(tl.float64)
        total += wide
        square += wide * wide  # exact, and so the same fused or not
    tl.store(largest + section, tl.max(most, 1).to(tl.float32, bitcast=True), known)
    tl.store(totals + section, fold(total, GROUP), known)
    tl.store(squares + section, fold(square, GROUP), known)


@triton.jit(do_not_specialize=["key", "sections"])
def ternarize(x, n, ends, sections, scales, key, codes, TILE: tl.constexpr):
    """Round the elements of a tile of bytes at random, and write their codes."""
    byte = positions(TILE)
    packed = tl.zeros([TILE], tl.int32)
    for place in tl.static_range(4):
        i = byte * 4 + place
        mask = i < n
        value = tl.load(x + i, mask, 0.0)
        scale = tl.load(scales + section_of(ends, sections, i), mask, 1.0)
        draw = (hash32(key, i) >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)
        up = mask & (tl.div_rn(tl.abs(value), scale) > draw)
        packed |= tl.where(up, tl.where(value < 0, 2, 1), 0) << (2 * place)
    tl.store(codes + byte, packed.to(tl.uint8), byte * 4 < n)


@triton.jit(do_not_specialize=["sections"])
def accumulate(codes, stride, rows, n, ends, sections, scales, out, meaningless, TILE: tl.constexpr):
    """Write the sum of the rows' vectors; find whether a code means nothing."""
    i = positions(TILE)
    mask = i < n
    section = section_of(ends, sections, i)
    total = tl.zeros([TILE], tl.float32)
    bad = tl.zeros([TILE], tl.int32)
    for row in range(rows):
        packed = tl.load(codes + tl.cast(row, tl.int64) * stride + i // 4, mask, 0).to(tl.int32)
        code = (packed >> (i % 4 * 2).to(tl.int32)) & 3
        # The bits behind the last element are of no element, and are looked at all the same.
        bad = tl.maximum(bad, tl.where(mask, packed & (packed >> 1) & 0x55, 0))
        scale = tl.load(scales + row * sections + section, mask, 0.0)
        total += tl.where(code == 1, scale, tl.where(code == 2, -scale, 0.0))
    tl.store(out + i, total, mask)
    tl.atomic_max(meaningless, tl.max(bad, 0), sem="relaxed")
