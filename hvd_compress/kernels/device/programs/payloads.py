"""Sparse payloads, from the bytes that were received."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import INFINITY, magnitude_bits, widen


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
def check(payloads, stride, positions_at, values_at, ends, blocks, d, corrupt, WIRE: tl.constexpr, TILE: tl.constexpr):
    """Find the first payload with a block whose positions do not ascend or leave the bucket, or a value that is not
    finite. The payloads' blocks take an instance each; ``ends`` are the running counts of every payload's blocks."""
    row = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    end = tl.load(ends + tl.program_id(0))
    start = tl.load(ends + tl.program_id(0) - 1, block > 0, 0)
    payload = payloads + row.to(tl.int64) * stride
    length = tl.minimum(d - block.to(tl.int64) * 65536, 65536)
    bad = tl.zeros([TILE], tl.int32)
    for k in range((end - start + TILE - 1) // TILE):
        j = start + k * TILE + tl.arange(0, TILE)
        mask = j < end
        position = load_16(payload + positions_at + 2 * j, mask)
        before = load_16(payload + positions_at + 2 * j - 2, mask & (j > start))
        value = load_values(payload + values_at, j, mask, WIRE)
        wrong = (position >= length) | ((j > start) & (position <= before)) | (magnitude_bits(value) >= INFINITY)
        bad = tl.maximum(bad, (mask & wrong).to(tl.int32))
    tl.atomic_min(corrupt, row, tl.max(bad, 0) > 0, sem="relaxed")


@triton.jit
def accumulate(payload, positions_at, values_at, ends, scale, out, WIRE: tl.constexpr, TILE: tl.constexpr):
    """Add the entries of one payload, a block in each instance; no two of them are the same element."""
    block = tl.program_id(0)
    end = tl.load(ends + block)
    start = tl.load(ends + block - 1, block > 0, 0)
    for k in range((end - start + TILE - 1) // TILE):
        j = start + k * TILE + tl.arange(0, TILE)
        mask = j < end
        at = out + block.to(tl.int64) * 65536 + load_16(payload + positions_at + 2 * j, mask)
        value = load_values(payload + values_at, j, mask, WIRE) * scale
        tl.store(at, tl.load(at, mask, 0.0) + value, mask)


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
def accumulate_dense(rows, n, d, scale, out, KIND: tl.constexpr, TILE: tl.constexpr):
    """Write the sum of the rows times a factor, in their order."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for row in range(n):
        total += widen(tl.load(rows + row * d + i, i < d, 0), KIND) * scale
    tl.store(out + i, total, i < d)
