"""What several programs share: reading gradients, magnitudes, and the counter-based hashes of ``kernels.hashing``."""

from __future__ import annotations

import triton
import triton.language as tl

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
INFINITY = tl.constexpr(0x7F800000)
TINY = tl.constexpr(2.0**-126)


@triton.jit
def positions(TILE: tl.constexpr):
    """Return the elements of this instance of a program: ``TILE`` of them, int64."""
    return tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)


@triton.jit
def magnitude_bits(x):
    """Return the magnitudes of float32 as integers that sort like them: int32, infinity comes next, and NaN last."""
    return x.to(tl.int32, bitcast=True) & MAGNITUDE


@triton.jit
def any_of(conditions):
    """Return whether one of a tile's conditions is true."""
    return tl.max(conditions.to(tl.int32), 0) > 0


@triton.jit
def widen(words, KIND: tl.constexpr):
    """Return float32 for what is stored as float32 (0), as the bits of float16 (1) or of bfloat16 (2)."""
    if KIND == 0:
        return words
    elif KIND == 1:
        return words.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return (words.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def load_piece(piece, i, mask, channels, space, KIND: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return the elements ``i`` of a piece, float32; 0 where the mask is false."""
    if CHANNELS_LAST:  # divisions of 64 bits take several times as long, and a bucket has at most 2**32 elements
        j, c, s = i.to(tl.uint32), tl.cast(channels, tl.uint32), tl.cast(space, tl.uint32)
        outer = j // s
        i = ((outer // c * s + j % s) * c + outer % c).to(tl.int64)
    words = tl.load(piece + i, mask, other=0)
    return words if KIND == 0 else widen(words, KIND)


@triton.jit
def load_sum(
    memory,
    piece,
    begin,
    i,
    mask,
    channels,
    space,
    HAS_MEMORY: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Return memory plus gradient at the elements ``i`` of a piece that begins at ``begin`` in its bucket."""
    if HAS_MEMORY:
        a = tl.load(memory + begin + i, mask, other=0.0)
        if KIND >= 0:
            a = tl.where(tl.abs(a) < TINY, 0.0, a)
            a = a + load_piece(piece, i, mask, channels, space, KIND, CHANNELS_LAST)
    else:
        a = load_piece(piece, i, mask, channels, space, KIND, CHANNELS_LAST)
    return a


@triton.jit
def hash64(key, counter):
    """Return SplitMix64's finalizer applied to ``key + (counter + 1) * golden``; uint64."""
    z = tl.cast(key, tl.uint64) + (counter.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def hash32(key, counter):
    """Return the upper half of ``hash64``, as uint64."""
    return hash64(key, counter) >> 32
