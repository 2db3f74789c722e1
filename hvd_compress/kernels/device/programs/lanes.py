"""Quantizers: codes in the lanes of words, as ``protocol.quantization`` lays them out.

The layout is a constant of each program, for divisions by constants are quick.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hvd_compress.kernels.device.programs.common import hash64, load_piece, magnitude_bits, positions


@triton.jit
def mix32(low, high, counter):
    """Return ``hashing.mix32`` of a key, given as its lower and upper half, and uint32."""
    x = counter * 0x9E3779B9 + tl.cast(low, tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) + tl.cast(high, tl.uint32)
    return x * 0x846CA68B


@triton.jit
def element(word, lane, lanes):
    """Return the element that is in this lane of a word."""
    return (word // 16 * lanes + lane) * 16 + word % 16


@triton.jit
def load_scale(
    scales, planes, i, mask, plane_words, PLANES: tl.constexpr, PLANE_WIDTH: tl.constexpr, PLANE_LANES: tl.constexpr
):
    """Return the scale of the elements ``i``: the one that all workers agree on."""
    choice = tl.zeros_like(i)
    agreed = mask
    line = i // 16
    for plane in tl.static_range(PLANES):
        at = planes + tl.cast(plane_words, tl.int64) * plane + line // PLANE_LANES * 16 + i % 16
        votes = (tl.load(at, mask, 0) >> (line % PLANE_LANES * PLANE_WIDTH)) & ((1 << PLANE_WIDTH) - 1)
        agreed = agreed & (votes == 0)
        choice += agreed.to(tl.int64)
    return tl.load(scales + choice, mask, 0.0)


@triton.jit(do_not_specialize=["low", "high"])
def quantize(
    piece,
    begin,
    n,
    channels,
    space,
    first,
    past,
    scales,
    planes,
    plane_words,
    limit,
    fraction,
    low,
    high,
    words,
    PLANES: tl.constexpr,
    PLANE_WIDTH: tl.constexpr,
    PLANE_LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ADD: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Round the elements of a piece at random and put their codes into the words ``[first, past)``.

    Where a bucket has several pieces (``ADD``), the codes are added to what is in the words.
    """
    word = first + positions(TILE)
    total = tl.zeros([TILE], words.dtype.element_ty)
    for lane in range(LANES):
        i = element(word, lane, LANES)
        mask = (word < past) & (i >= begin) & (i < begin + n)
        scale = load_scale(scales, planes, i, mask, plane_words, PLANES, PLANE_WIDTH, PLANE_LANES)
        y = load_piece(piece, i - begin, mask, channels, space, KIND, CHANNELS_LAST) * scale
        y = tl.where(y < limit, y, limit)
        y = tl.where(y > -limit, y, -limit)
        # Adding 2**23 rounds to an integer, ties to even; larger numbers are integers already.
        unit = tl.where(y < 0, -8388608.0, 8388608.0)
        y = tl.where(tl.abs(y) < 8388608.0, (y + unit) - unit, y)
        line = i // 16
        h = mix32(low, high, (line // 2 * 16 + i % 16).to(tl.uint32))
        h = tl.where(line % 2 == 1, h * 0x915F77F5, h)
        code = (y.to(tl.int32) + (h >> (32 - fraction)).to(tl.int32)) >> fraction
        total += tl.where(mask, code, 0).to(words.dtype.element_ty) << (WIDTH * lane)
    if ADD:
        total += tl.load(words + word, word < past, 0)
    tl.store(words + word, total, word < past)


@triton.jit(do_not_specialize=["bias"])
def dequantize(
    words,
    n,
    scales,
    planes,
    plane_words,
    bias,
    most,
    out,
    PLANES: tl.constexpr,
    PLANE_WIDTH: tl.constexpr,
    PLANE_LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the elements that the summed codes mean; ``most`` is the largest sum of codes."""
    i = positions(TILE)
    mask = i < n
    line = i // 16
    # Modulo 2**64 also for words of 32 bits: their lanes are below, and carries only go up.
    word = tl.load(words + line // LANES * 16 + i % 16, mask, 0).to(tl.int64).to(tl.uint64, bitcast=True)
    field = ((word + tl.cast(bias, tl.uint64)) >> (line % LANES * WIDTH).to(tl.uint64)).to(tl.int64, bitcast=True)
    code = ((field & ((tl.full((), 1, tl.int64) << WIDTH) - 1)) - most).to(tl.int32)
    scale = load_scale(scales, planes, i, mask, plane_words, PLANES, PLANE_WIDTH, PLANE_LANES)
    tl.store(out + i, code.to(tl.float32) * scale, mask)


@triton.jit
def vote(
    piece,
    begin,
    n,
    channels,
    space,
    first,
    past,
    limit,
    words,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ADD: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put 1 into the lanes of a piece's elements whose magnitude exceeds the limit (its bits)."""
    word = first + positions(TILE)
    total = tl.zeros([TILE], tl.int64)
    for lane in range(LANES):
        i = element(word, lane, LANES)
        mask = (word < past) & (i >= begin) & (i < begin + n)
        bits = magnitude_bits(load_piece(piece, i - begin, mask, channels, space, KIND, CHANNELS_LAST))
        total += (mask & (bits > limit)).to(tl.int64) << (WIDTH * lane)
    if ADD:
        total += tl.load(words + word, word < past, 0)
    tl.store(words + word, total, word < past)


@triton.jit(do_not_specialize=["key"])
def permutation(key, start, size, a, b, n, out, ROUNDS: tl.constexpr, TILE: tl.constexpr):
    """Write the permutation of ``start`` and the numbers after it; see ``QuantizationKernels.permutation``."""
    i = positions(TILE)
    x = start + tl.minimum(i, n - 1)
    todo = x >= 0
    while tl.max(todo.to(tl.int32), 0) == 1:
        left = (x.to(tl.uint32) // tl.cast(b, tl.uint32)).to(tl.int64)  # quicker than of 64 bits
        right = x - left * b
        for j in tl.static_range(ROUNDS):
            k = hash64(key, tl.full((), j, tl.int64))
            low = k & 0xFFFFFFFF
            high = k >> 32
            if j % 2 == 0:  # both summands are below a, and so the sum modulo a is a difference
                left += (mix32(low, high, right.to(tl.uint32)).to(tl.int64) * a) >> 32
                left = tl.where(left >= a, left - a, left)
            else:
                right += (mix32(low, high, left.to(tl.uint32)).to(tl.int64) * b) >> 32
                right = tl.where(right >= b, right - b, right)
        x = tl.where(todo, left * b + right, x)
        todo = x >= size
    tl.store(out + i, x.to(tl.int32), i < n)
