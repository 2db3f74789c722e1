"""Error feedback and selection: add, sample, select, put back, gather, scatter."""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import (
    INFINITY,
    TINY,
    any_of,
    hash32,
    load_piece,
    load_sum,
    magnitude_bits,
    positions,
)


@triton.jit
def add(
    memory,
    piece,
    begin,
    n,
    channels,
    space,
    out,
    bad,
    HAS_MEMORY: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write memory plus gradient, and 1 to ``bad`` if it is not finite everywhere."""
    i = positions(TILE)
    mask = i < n
    a = load_sum(memory, piece, begin, i, mask, channels, space, HAS_MEMORY, KIND, CHANNELS_LAST)
    tl.store(bad, 1, any_of(mask & (magnitude_bits(a) >= INFINITY)))
    tl.store(out + begin + i, a, mask)


@triton.jit(do_not_specialize=["key"])
def sample(
    memory,
    piece,
    begin,
    n,
    channels,
    space,
    key,
    all_lines,
    lines,
    first,
    past,
    out,
    HAS_MEMORY: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the lines that are drawn from the strata ``[first, past)``, where they are in a piece."""
    stratum = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    low = stratum * all_lines // lines
    width = (stratum + 1) * all_lines // lines - low
    line = low + (hash32(key, stratum) * width.to(tl.uint64) >> 32).to(tl.int64)
    lane = tl.arange(0, 16)[None, :]
    i = line[:, None] * 16 + lane - begin
    mask = (i >= 0) & (i < n) & (stratum < past)[:, None]
    a = load_sum(memory, piece, begin, i, mask, channels, space, HAS_MEMORY, KIND, CHANNELS_LAST)
    tl.store(out + stratum[:, None] * 16 + lane, a, mask)


@triton.jit
def select(
    memory,
    piece,
    begin,
    n,
    channels,
    space,
    out,
    limit,
    room,
    state,
    chunks,
    indices,
    values,
    HAS_MEMORY: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write memory plus gradient, and move what exceeds the limit (magnitude bits) to a place of this tile's own.

    ``state`` counts the elements that exceed it, and says whether one is not finite; ``chunks`` receives this tile's
    place and count. A tile that finds no room leaves its elements in ``out``. The places are in any order: which tile
    comes first is of no consequence, for ``order`` goes by the tiles.
    """
    i = positions(TILE)
    mask = i < n
    a = load_sum(memory, piece, begin, i, mask, channels, space, HAS_MEMORY, KIND, CHANNELS_LAST)
    bits = magnitude_bits(a)
    above = mask & (bits > limit)
    rank = tl.cumsum(above.to(tl.int32), 0)
    count = tl.sum(above.to(tl.int32), 0).to(tl.int64)
    place = tl.atomic_add(state, count, count > 0, sem="relaxed")  # one address: tiles with nothing keep off it
    tl.store(state + 1, 1, any_of(mask & (bits >= INFINITY)))
    tl.store(chunks + 2 * tl.program_id(0), place)
    tl.store(chunks + 2 * tl.program_id(0) + 1, count)
    moved = above & (place + count <= room)
    at = place + rank - 1
    tl.store(indices + at, (begin + i).to(tl.int32), moved)
    tl.store(values + at, a, moved)
    tl.store(out + begin + i, tl.where(moved, 0.0, a), mask)


@triton.jit
def order(chunks, ends, indices, values, room, ordered_indices, ordered_values, TILE: tl.constexpr):
    """Copy one tile's elements to where they belong; ``ends`` are the running counts of the tiles."""
    tile = tl.program_id(0)
    place = tl.load(chunks + 2 * tile)
    count = tl.load(chunks + 2 * tile + 1)
    to = tl.load(ends + tile) - count
    j = tl.arange(0, TILE)
    mask = (j < count) & (place + count <= room) & (to + j < room)
    tl.store(ordered_indices + to + j, tl.load(indices + place + j, mask), mask)
    tl.store(ordered_values + to + j, tl.load(values + place + j, mask), mask)


@triton.jit
def put_back(chunks, indices, values, room, out, TILE: tl.constexpr):
    """Undo what ``select`` did for one tile."""
    place = tl.load(chunks + 2 * tl.program_id(0))
    count = tl.load(chunks + 2 * tl.program_id(0) + 1)
    j = tl.arange(0, TILE)
    mask = (j < count) & (place + count <= room)
    index = tl.load(indices + place + j, mask, 0).to(tl.int64) & 0xFFFFFFFF
    tl.store(out + index, tl.load(values + place + j, mask), mask)


@triton.jit
def histogram(x, n, cut, shift, counts, TILE: tl.constexpr):
    """Count the next 8 bits of the magnitudes whose bits above those are those of ``cut[0]``."""
    i = positions(TILE)
    mask = i < n
    bits = magnitude_bits(tl.load(x + i, mask, 0.0))
    # Two shifts: one by 32 bits is undefined, and the upper 8 bits are preceded by none.
    same = mask & ((bits.to(tl.int64) >> (shift + 8)) == (tl.load(cut) >> (shift + 8)))
    found = tl.histogram((bits >> shift) & 255, 256, mask=same)
    digit = tl.arange(0, 256)
    tl.atomic_add(counts + digit, found, found > 0, sem="relaxed")


@triton.jit
def narrow_cut(counts, cut, shift):
    """Choose the 8 bits in which the ``cut[1]``-th largest magnitude lies: ``cut`` becomes the bits so far, and how
    many of the elements with these are wanted. The counts become zero."""
    digit = tl.arange(0, 256)
    count = tl.load(counts + digit).to(tl.int64) & 0xFFFFFFFF
    above = tl.sum(count, 0) - tl.cumsum(count, 0)
    wanted = tl.load(cut + 1)
    chosen = (above < wanted) & (above + count >= wanted)
    bits = tl.sum(tl.where(chosen, digit.to(tl.int64) << shift, 0), 0)
    before = tl.sum(tl.where(chosen, above, 0), 0)
    tl.store(cut, tl.load(cut) | bits)
    tl.store(cut + 1, wanted - before)
    tl.store(counts + digit, tl.zeros([256], tl.int32))


@triton.jit
def count_largest(x, n, cut, counts, TILE: tl.constexpr):
    """Count the elements of a tile whose magnitude is above that of the cut, and those with exactly that."""
    i = positions(TILE)
    mask = i < n
    bits = magnitude_bits(tl.load(x + i, mask, 0.0))
    limit = tl.load(cut)
    tile = tl.program_id(0)
    tl.store(counts + 2 * tile, tl.sum((mask & (bits > limit)).to(tl.int32), 0))
    tl.store(counts + 2 * tile + 1, tl.sum((mask & (bits == limit)).to(tl.int32), 0))


@triton.jit
def move_largest(x, n, cut, counts, ends, indices, values, TILE: tl.constexpr):
    """Move the elements above the cut, and the first ``cut[1]`` that equal it, out of ``x``, in ascending order."""
    i = positions(TILE)
    mask = i < n
    a = tl.load(x + i, mask, 0.0)
    bits = magnitude_bits(a)
    limit = tl.load(cut)
    wanted = tl.load(cut + 1)
    tile = tl.program_id(0)
    above = mask & (bits > limit)
    equal = mask & (bits == limit)
    above_before = tl.load(ends + 2 * tile) - tl.load(counts + 2 * tile)
    equal_before = tl.load(ends + 2 * tile + 1) - tl.load(counts + 2 * tile + 1)
    above_before += tl.cumsum(above.to(tl.int32), 0) - above.to(tl.int32)
    equal_before += tl.cumsum(equal.to(tl.int32), 0) - equal.to(tl.int32)
    moved = above | (equal & (equal_before < wanted))
    at = above_before + tl.minimum(equal_before, wanted)
    tl.store(indices + at, i.to(tl.int32), moved)
    tl.store(values + at, a, moved)
    tl.store(x + i, 0.0, moved)


@triton.jit
def scatter(out, indices, values, n, TILE: tl.constexpr):
    """Write ``out[indices] = values``."""
    j = positions(TILE)
    mask = j < n
    index = tl.load(indices + j, mask, 0).to(tl.int64) & 0xFFFFFFFF
    tl.store(out + index, tl.load(values + j, mask), mask)


@triton.jit
def gather(values, indices, out, n, TILE: tl.constexpr):
    """Write ``out = values[indices]``."""
    j = positions(TILE)
    mask = j < n
    index = tl.load(indices + j, mask, 0).to(tl.int64) & 0xFFFFFFFF
    tl.store(out + j, tl.load(values + index, mask), mask)


@triton.jit
def add_momentum(
    momentum,
    velocity,
    piece,
    begin,
    n,
    channels,
    space,
    beta,
    momentum_out,
    velocity_out,
    largest,
    NESTEROV: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write DGC's momentum and velocity; find the largest magnitude of either, as bits."""
    i = positions(TILE)
    mask = i < n
    u = tl.load(momentum + begin + i, mask, other=0.0)
    v = tl.load(velocity + begin + i, mask, other=0.0)
    u = beta * tl.where(tl.abs(u) < TINY, 0.0, u)
    v = tl.where(tl.abs(v) < TINY, 0.0, v)
    if KIND >= 0:
        g = load_piece(piece, i, mask, channels, space, KIND, CHANNELS_LAST)
        u = u + g
    step = u
    if NESTEROV:
        step = beta * u
        if KIND >= 0:
            step = step + g
    v = v + step
    tl.store(momentum_out + begin + i, u, mask)
    tl.store(velocity_out + begin + i, v, mask)
    tl.atomic_max(largest, tl.max(tl.where(mask, magnitude_bits(u), 0), 0), sem="relaxed")
    tl.atomic_max(largest + 1, tl.max(tl.where(mask, magnitude_bits(v), 0), 0), sem="relaxed")
