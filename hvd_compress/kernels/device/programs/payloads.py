"""Sparse payloads, from the bytes that were received."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import INFINITY, any_of, magnitude_bits, widen


@triton.jit
def load_16(at, mask):
    """Return 16-bit numbers (int32) from two bytes each: sections of a payload may begin anywhere."""
    return tl.load(at, mask, 0).to(tl.int32) | (tl.load(at + 1, mask, 0).to(tl.int32) << 8)


@triton.jit
def load_values(at, j, mask, WIRE: tl.constexpr):
    """Return the values ``j`` of a payload whose values begin at ``at``, float32."""
    if WIRE == 0:
        low, high = load_16(at + 4 * j, mask), load_16(at + 4 * j + 2, mask)
        value = (low | (high << 16)).to(tl.float32, bitcast=True)
    elif WIRE == 1:
        value = widen(load_16(at + 2 * j, mask).to(tl.int16), 2)
    else:
        value = widen(load_16(at + 2 * j, mask).to(tl.int16), 1)
    return value


@triton.jit
def out_of_order(positions, j, start, mask, length):
    """Return whether the in-block positions ``j``, and where they do not ascend from ``start`` on or are not below
    ``length``."""
    position = load_16(positions + 2 * j, mask)
    before = load_16(positions + 2 * j - 2, mask & (j > start))
    return position, mask & ((position >= length) | ((j > start) & (position <= before)))


@triton.jit
def check_positions(payloads, stride, positions_at, ends, blocks, d, corrupt, TILE: tl.constexpr):
    """Find the first payload with a block whose positions do not ascend or leave the bucket. The payloads' blocks take
    an instance each; ``ends`` are the running counts of every payload's blocks."""
    row = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    end = tl.load(ends + tl.program_id(0))
    start = tl.load(ends + tl.program_id(0) - 1, block > 0, 0)
    length = tl.minimum(d - block.to(tl.int64) * 65536, 65536)
    bad = tl.zeros([TILE], tl.int1)
    for k in range((end - start + TILE - 1) // TILE):
        j = start + k * TILE + tl.arange(0, TILE)
        _, wrong = out_of_order(payloads + row.to(tl.int64) * stride + positions_at, j, start, j < end, length)
        bad = bad | wrong
    tl.atomic_min(corrupt, row, any_of(bad), sem="relaxed")


@triton.jit
def accumulate(
    payloads,
    stride,
    rows,
    positions_at,
    values_at,
    ends,
    blocks,
    d,
    scale,
    out,
    corrupt,
    WIRE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add the entries of one block of all payloads, one payload after the other; in each they are different elements.
    Find the first payload whose positions do not ascend or leave the bucket, or with a value that is not finite.

    The barrier makes what one payload's entries have come to visible to the threads that add the next one's.
    """
    block = tl.program_id(0)
    first = block.to(tl.int64) * 65536
    length = tl.minimum(d - first, 65536)
    for row in range(rows):
        payload = payloads + tl.cast(row, tl.int64) * stride
        end = tl.load(ends + row * blocks + block)
        start = tl.load(ends + row * blocks + block - 1, block > 0, 0)
        bad = tl.zeros([TILE], tl.int1)
        for k in range((end - start + TILE - 1) // TILE):
            j = start + k * TILE + tl.arange(0, TILE)
            mask = j < end
            position, wrong = out_of_order(payload + positions_at, j, start, mask, length)
            value = load_values(payload + values_at, j, mask, WIRE)
            bad = bad | wrong | (mask & (magnitude_bits(value) >= INFINITY))
            inside = mask & (position < length)
            at = out + first + position
            tl.store(at, tl.load(at, inside, 0.0) + value * scale, inside)
        tl.atomic_min(corrupt, row, any_of(bad), sem="relaxed")
        tl.debug_barrier()


@triton.jit
def narrow(x, out, n, WIRE: tl.constexpr, TILE: tl.constexpr):
    """Write float32 as the bits of bfloat16 (1) or float16 (2), rounded to nearest even; a NaN stays one, quiet."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    bits = tl.load(x + i, i < n, 0)  # as int32
    magnitude = bits & 0x7FFFFFFF
    if WIRE == 1:
        rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
        quiet = (magnitude >> 16) | 0x40
    else:
        # Normal numbers: a new exponent, and 13 bits are rounded off; a carry goes to the exponent, and at its end to
        # infinity. Below 2**-14 the significand with its leading bit is shifted to units of 2**-24.
        normal = (tl.minimum(magnitude, 0x47800000) - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13
        shift = tl.minimum(126 - (magnitude >> 23), 31)
        significand = (magnitude & 0x7FFFFF) | 0x800000
        kept = significand >> tl.maximum(shift, 0)
        half = 1 << tl.maximum(shift - 1, 0)
        rest = significand - (kept << tl.maximum(shift, 0))
        small = kept + ((rest > half) | ((rest == half) & ((kept & 1) == 1))).to(tl.int32)
        rounded = tl.where(magnitude < 0x38800000, small, tl.minimum(normal, 0x7C00))
        quiet = 0x7E00 | ((bits >> 13) & 0x3FF)
    words = tl.where(magnitude > 0x7F800000, quiet, rounded) | ((bits >> 16) & 0x8000)
    tl.store(out + i, words.to(tl.int16), i < n)


@triton.jit
def accumulate_dense(rows, n, d, scale, out, infinite, KIND: tl.constexpr, TILE: tl.constexpr):
    """Write the sum of the rows times a factor, in their order; ``infinite`` becomes 1 if one is not finite."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for row in range(n):  # many rows may have more elements than 32 bits count
        total += widen(tl.load(rows + tl.cast(row, tl.int64) * d + i, i < d, 0), KIND) * scale
    tl.store(out + i, total, i < d)
    tl.atomic_max(infinite, any_of((i < d) & (magnitude_bits(total) >= INFINITY)), sem="relaxed")
