"""Pairs of a spectrum and range-based floats: energies, what is sent, and the sum of what was received."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import MAGNITUDE, TINY, any_of, hash32, positions
from hvd_compress.kernels.device.programs.payloads import load_16

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def energies(pairs, n, scale, out, TILE: tl.constexpr):
    """Write the energy of every pair."""
    i = positions(TILE)
    mask = i < n
    re = tl.load(pairs + 2 * i, mask, 0.0) * scale
    im = tl.load(pairs + 2 * i + 1, mask, 0.0) * scale
    tl.store(out + i, tl.minimum(re * re + im * im, LARGEST), mask)


@triton.jit
def gather(pairs, indices, n, values, TILE: tl.constexpr):
    """Write the numbers of the pairs at the indices: ``n`` numbers."""
    j = positions(TILE)
    mask = j < n
    index = tl.load(indices + j // 2, mask, 0).to(tl.int64) & 0xFFFFFFFF
    tl.store(values + j, tl.load(pairs + 2 * index + j % 2, mask), mask)


@triton.jit
def range_code(x, j, key, shift, base, positives, negatives, low, high, KEYED: tl.constexpr):
    """Return the codes of the numbers ``x``, the ``j``-th of all; ``low`` and ``high`` are the bits of magnitudes."""
    bits = x.to(tl.int32, bitcast=True)
    negative = bits < 0
    magnitude = bits & MAGNITUDE
    count = tl.where(negative, negatives, positives)
    end = tl.where(negative, low, high)
    cell = tl.minimum(tl.maximum((magnitude >> shift) - base + 1, 0), count - 1)
    lower = tl.where(cell <= 0, 0, (base + cell - 1) << shift).to(tl.float32, bitcast=True)
    upper = tl.where(cell == count - 1, end, (base + cell) << shift).to(tl.float32, bitcast=True)
    value = magnitude.to(tl.float32, bitcast=True)
    if KEYED:
        draw = (hash32(key, j) >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)
        up = tl.div_rn(value - lower, upper - lower) > draw
    else:
        up = value - lower >= upper - value
    code = cell + (up | (magnitude >= end)).to(tl.int32)
    return tl.where(negative & (code > 0), code + positives, code)


@triton.jit(do_not_specialize=["key", "base", "positives", "negatives", "low", "high"])
def range_encode(
    x,
    n,
    key,
    bits,
    shift,
    base,
    positives,
    negatives,
    low,
    high,
    nbytes,
    out,
    KEYED: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write a tile of bytes: of all codes that have bits in them, ``SPAN`` at most."""
    byte = positions(TILE)
    packed = tl.zeros([TILE], tl.int32)
    for place in tl.static_range(SPAN):
        j = byte * 8 // bits + place
        offset = (j * bits - byte * 8).to(tl.int32)
        mask = (byte < nbytes) & (j < n) & (offset < 8)
        value = tl.load(x + j, mask, 0.0)
        code = range_code(value, j, key, shift, base, positives, negatives, low, high, KEYED)
        moved = tl.where(offset < 0, code >> tl.maximum(-offset, 0), code << tl.minimum(tl.maximum(offset, 0), 8))
        packed |= tl.where(mask, moved & 255, 0)
    tl.store(out + byte, packed.to(tl.uint8), byte < nbytes)


@triton.jit
def load_code(codes, c, mask, bits):
    """Return the codes ``c`` that are packed from a byte on."""
    at = c * bits
    start = codes + at // 8
    offset = (at % 8).to(tl.int32)
    word = tl.load(start, mask, 0).to(tl.int32)
    word |= tl.load(start + 1, mask & (offset + bits > 8), 0).to(tl.int32) << 8
    word |= tl.load(start + 2, mask & (offset + bits > 16), 0).to(tl.int32) << 16
    return (word >> offset) & ((1 << bits) - 1)


@triton.jit
def check_codes(payloads, stride, codes_at, entries, table_ends, bits, tiles, corrupt, TILE: tl.constexpr):
    """Find the first payload with a code that has no value in its table; ``tiles`` instances for each."""
    row = tl.program_id(0) // tiles
    c = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = c < 2 * tl.load(entries + row)
    size = tl.load(table_ends + row) - tl.load(table_ends + row - 1, row > 0, 0)
    code = load_code(payloads + row.to(tl.int64) * stride + codes_at, c, mask, bits)
    tl.atomic_min(corrupt, row, any_of(mask & (code >= size)), sem="relaxed")


@triton.jit
def load_marks(bitmap, i, mask):
    """Return the bits ``i`` of a bitmap."""
    return (tl.load(bitmap + i // 8, mask, 0).to(tl.int32) >> (i % 8).to(tl.int32)) & 1


@triton.jit
def count_marks(payloads, stride, places_at, bits, pairs, tiles, counts, corrupt, TILE: tl.constexpr):
    """Count the marks in every tile of every payload's bitmap; find the first that has some behind the last pair."""
    row = tl.program_id(0) // tiles
    i = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    mark = load_marks(payloads + row.to(tl.int64) * stride + places_at, i, i < bits)
    tl.store(counts + tl.program_id(0), tl.sum(mark, 0))
    tl.atomic_min(corrupt, row, any_of((mark == 1) & (i >= pairs)), sem="relaxed")


@triton.jit
def sum_marked(
    payloads,
    stride,
    rows,
    places_at,
    codes_at,
    bits,
    pairs,
    tiles,
    counts,
    ends,
    tables,
    table_ends,
    out,
    TILE: tl.constexpr,
):
    """Write a tile of the sum of all spectra, payload after payload; ``ends`` are the running counts of each."""
    i = positions(TILE)
    tile = tl.program_id(0)
    re = tl.zeros([TILE], tl.float32)
    im = tl.zeros([TILE], tl.float32)
    for row in range(rows):
        payload = payloads + tl.cast(row, tl.int64) * stride
        mark = load_marks(payload + places_at, i, i < pairs)
        marked = mark == 1
        before = tl.load(ends + row * tiles + tile) - tl.load(counts + row * tiles + tile)
        c = 2 * (before + tl.cumsum(mark, 0) - mark)
        table = tables + tl.load(table_ends + row - 1, row > 0, 0)
        re += tl.load(table + load_code(payload + codes_at, c, marked, bits), marked, 0.0)
        im += tl.load(table + load_code(payload + codes_at, c + 1, marked, bits), marked, 0.0)
    tl.store(out + 2 * i, re, i < pairs)
    tl.store(out + 2 * i + 1, im, i < pairs)


@triton.jit
def add_placed(
    payloads,
    stride,
    rows,
    places_at,
    codes_at,
    bits,
    ends,
    blocks,
    tables,
    table_ends,
    out,
    TILE: tl.constexpr,
):
    """Add the pairs of one block of 65,536 of all payloads, as ``payloads.accumulate`` adds entries."""
    block = tl.program_id(0)
    for row in range(rows):
        payload = payloads + tl.cast(row, tl.int64) * stride
        table = tables + tl.load(table_ends + row - 1, row > 0, 0)
        end = tl.load(ends + row * blocks + block)
        start = tl.load(ends + row * blocks + block - 1, block > 0, 0)
        for k in range((end - start + TILE - 1) // TILE):
            j = start + k * TILE + tl.arange(0, TILE)
            mask = j < end
            at = out + 2 * (block.to(tl.int64) * 65536 + load_16(payload + places_at + 2 * j, mask))
            re = tl.load(table + load_code(payload + codes_at, 2 * j, mask, bits), mask, 0.0)
            im = tl.load(table + load_code(payload + codes_at, 2 * j + 1, mask, bits), mask, 0.0)
            tl.store(at, tl.load(at, mask, 0.0) + re, mask)
            tl.store(at + 1, tl.load(at + 1, mask, 0.0) + im, mask)
        tl.debug_barrier()


@triton.jit
def finish_inverse(x, n, factor, scale, minuend, out, HAS_MINUEND: tl.constexpr, TILE: tl.constexpr):
    """Write the data times its factors, or what that leaves of the minuend."""
    i = positions(TILE)
    mask = i < n
    value = tl.load(x + i, mask, 0.0) * factor * scale
    if HAS_MINUEND:
        value = tl.load(minuend + i, mask, 0.0) - value
        value = tl.where(tl.abs(value) < TINY, 0.0, value)
    tl.store(out + i, value, mask)
