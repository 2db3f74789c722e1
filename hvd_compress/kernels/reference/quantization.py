"""Quantizers in NumPy: the specification of the kernels for them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.hashing import hash32, hash64, mix32, scramble
from hvd_compress.kernels.protocol import (
    FEISTEL_ROUNDS,
    LANES,
    MAX_SCALES,
    Float32,
    Int64,
    Pieces,
    SectionMoments,
    UInt8,
    UInt32,
    Words,
    check_lanes,
    fraction_bits,
)
from hvd_compress.kernels.reference.sparsification import lane_sum, moments_of_magnitudes

CODE_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
TERNARY_SIGNS = np.array([0, 1, -1], np.float32)
"""What the codes 0, 1 and 2 mean; 3 means nothing."""


def _section_of_each(ends: Int64, d: int) -> NDArray[np.intp]:
    """Return the section of every element; raise ValueError unless ``ends`` ascend to ``d``."""
    lengths = np.diff(ends, prepend=0)
    if (lengths <= 0).any() or lengths.sum() != d:
        raise ValueError(f"ends must ascend from above 0 to the number of elements, {d}, not {ends}")
    return np.repeat(np.arange(len(ends)), lengths)


def _joined(pieces: Pieces) -> Float32:
    return np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _lines(d: int) -> int:
    return -(-d // LANES)


def _pack(lane_values: Int64, width: int, lanes: int) -> Int64:
    """Pack one value per element to words; what is missing in the last block is 0."""
    blocks = -(-_lines(len(lane_values)) // lanes)
    padded = np.zeros((blocks, lanes, LANES), np.int64)
    padded.reshape(-1)[: len(lane_values)] = lane_values
    shifts = (width * np.arange(lanes)).reshape(1, lanes, 1)
    packed: Int64 = (padded << shifts).sum(axis=1).reshape(-1)
    return packed


def _unpack(words: NDArray[np.uint64], width: int, lanes: int, d: int) -> NDArray[np.uint64]:
    """Return the lanes of the first ``d`` elements, unsigned."""
    shifts = np.arange(0, width * lanes, width, dtype=np.uint64).reshape(1, lanes, 1)
    fields = words.reshape(-1, 1, LANES) >> shifts & np.uint64(2**width - 1)
    return fields.reshape(-1)[:d]


def _check_layout(workers: int, levels: int, width: int, words: Words, d: int) -> int:
    """Return the lanes of a word; raise TypeError or ValueError unless everything fits."""
    check_lanes(workers, levels, width)
    if words.dtype not in (np.int32, np.int64):
        raise TypeError(f"words must be int32 or int64, not {words.dtype}")
    lanes = 8 * words.dtype.itemsize // width
    if len(words) != (wanted := LANES * -(-_lines(d) // lanes)):
        raise ValueError(f"words has {len(words)} elements, not {wanted}")
    return lanes


def _check_planes(planes: Int64, count: int, width: int, d: int) -> int:
    lanes = 63 // width
    if len(planes) != (wanted := count * LANES * -(-_lines(d) // lanes)):
        raise ValueError(f"planes has {len(planes)} elements, not {wanted}")
    return lanes


def _scale_of_each(scales: Float32, planes: Int64 | None, workers: int, d: int) -> Float32:
    if not 1 <= len(scales) <= MAX_SCALES:
        raise ValueError(f"scales must have 1 to {MAX_SCALES} elements, not {len(scales)}")
    if (planes is None) != (len(scales) == 1):
        raise ValueError("planes must be None if and only if there is one scale")
    if planes is None:
        return np.full(d, scales[0])
    lanes = _check_planes(planes, len(scales) - 1, workers.bit_length(), d)
    choice, agreed = np.zeros(d, np.intp), np.ones(d, np.bool_)
    for plane in planes.view(np.uint64).reshape(len(scales) - 1, -1):
        agreed &= _unpack(plane, workers.bit_length(), lanes, d) == 0
        choice += agreed
    return scales[choice]


class QuantizationReference:
    """``QuantizationKernels`` in NumPy."""

    def norm(self, pieces: Pieces, euclidean: bool) -> float:
        moments = moments_of_magnitudes(np.abs(_joined(pieces)))
        return math.sqrt(moments.squares) if euclidean else moments.largest

    def quantize(
        self,
        pieces: Pieces,
        scales: Float32,
        planes: Int64 | None,
        workers: int,
        levels: int,
        width: int,
        key: int,
        words: Words,
    ) -> None:
        x = _joined(pieces)
        lanes = _check_layout(workers, levels, width, words, len(x))
        scale = _scale_of_each(scales, planes, workers, len(x))
        if not ((scales >= 0) & np.isfinite(scales)).all():
            raise ValueError(f"scales must be finite and >= 0, not {scales}")
        bits = fraction_bits(levels)
        limit = np.float32(levels << bits)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            y = x * scale
            y = np.where(y < limit, y, limit)
            y = np.where(y > -limit, y, -limit)
        u = scramble(key, len(x)) >> np.uint32(32 - bits)
        words[:] = _pack((np.rint(y).astype(np.int64) + u) >> bits, width, lanes)

    def dequantize(
        self, words: Words, planes: Int64 | None, workers: int, levels: int, width: int, scales: Float32, out: Float32
    ) -> None:
        lanes = _check_layout(workers, levels, width, words, len(out))
        scale = _scale_of_each(scales, planes, workers, len(out))
        bias = sum(levels * workers << width * j for j in range(lanes))
        unsigned = words.view(np.uint32 if words.dtype == np.int32 else np.uint64).astype(np.uint64)
        sums = _unpack(unsigned + np.uint64(bias), width, lanes, len(out)).astype(np.int64) - levels * workers
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            out[:] = sums.astype(np.int32).astype(np.float32) * scale

    def mask(self, pieces: Pieces, limits: Float32, width: int, planes: Int64) -> None:
        x = _joined(pieces)
        if not 1 <= width <= 32:
            raise ValueError(f"width must be in [1, 32], not {width}")
        if len(limits) >= MAX_SCALES or not (limits >= 0).all() or (limits[1:] > limits[:-1]).any():
            raise ValueError(f"limits must be up to {MAX_SCALES - 1} numbers >= 0 that do not ascend, not {limits}")
        lanes = _check_planes(planes, len(limits), width, len(x))
        magnitudes = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
        above = magnitudes > np.abs(limits).view(np.uint32)[:, np.newaxis]
        for plane, votes in zip(planes.reshape(max(len(limits), 1), -1), above, strict=False):
            plane[:] = _pack(votes.astype(np.int64), width, lanes)

    def permutation(self, key: int, start: int, size: int, out: UInt32) -> None:
        if not 1 <= size < 2**32:
            raise ValueError(f"size must be in [1, 2**32), not {size}")
        if start < 0 or start + len(out) > size:
            raise ValueError(f"start = {start} and the length of out, {len(out)}, exceed the size {size}")
        a = math.isqrt(size - 1) + 1
        b = -(-size // a)
        keys = hash64(key, np.arange(FEISTEL_ROUNDS, dtype=np.uint64)).tolist()
        x = np.arange(start, start + len(out), dtype=np.uint64)
        todo = np.arange(len(out))
        while len(todo):
            halves = [x[todo] // b, x[todo] % b]
            for j, key_of_round in enumerate(keys):
                side, modulus = j % 2, (a, b)[j % 2]
                hashed = mix32(key_of_round, halves[1 - side].astype(np.uint32)).astype(np.uint64)
                halves[side] = (halves[side] + (hashed * np.uint64(modulus) >> np.uint64(32))) % np.uint64(modulus)
            x[todo] = halves[0] * np.uint64(b) + halves[1]
            todo = todo[x[todo] >= size]
        out[:] = x

    def section_moments(self, x: Float32, ends: Int64) -> SectionMoments:
        _section_of_each(ends, len(x))
        sections = np.split(x.astype(np.float64), ends)[:-1]
        with np.errstate(over="ignore", invalid="ignore"):
            return SectionMoments(
                np.array([np.abs(section).max() for section in sections], np.float32),
                np.array([lane_sum(section) for section in sections]),
                np.array([lane_sum(section * section) for section in sections]),
            )

    def ternarize(self, x: Float32, ends: Int64, scales: Float32, key: int, codes: UInt8) -> None:
        if len(codes) != -(-len(x) // 4):
            raise ValueError(f"codes has {len(codes)} bytes for {len(x)} elements")
        draws = (hash32(key, np.arange(len(x), dtype=np.uint64)) >> np.uint64(8)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            up = np.abs(x) / scales[_section_of_each(ends, len(x))] > draws * np.float32(2.0**-24)
        fours = np.zeros((len(codes), 4), np.uint8)
        fours.reshape(-1)[: len(x)] = np.where(up, np.where(x < 0, 2, 1), 0)
        codes[:] = np.bitwise_or.reduce(fours << CODE_SHIFTS, axis=1)

    def accumulate_ternary(self, payloads: UInt8, codes_at: int, ends: Int64, scales: Float32, out: Float32) -> bool:
        nbytes = -(-len(out) // 4)
        if scales.shape != (len(payloads), len(ends)):
            raise ValueError(f"scales has the shape {scales.shape}, not ({len(payloads)}, {len(ends)})")
        if not 0 <= codes_at <= payloads.shape[1] - nbytes:
            raise ValueError(f"codes_at = {codes_at} and the codes exceed payloads of {payloads.shape[1]} bytes")
        section = _section_of_each(ends, len(out))
        packed = payloads[:, codes_at : codes_at + nbytes]
        if (packed & packed >> 1 & 0x55).any():
            return False
        out[:] = 0
        for row, own in zip(packed, scales, strict=True):
            codes = (row[:, np.newaxis] >> CODE_SHIFTS & 3).reshape(-1)[: len(out)]
            with np.errstate(over="ignore", invalid="ignore"):
                out += TERNARY_SIGNS[codes] * own[section]
        return True
