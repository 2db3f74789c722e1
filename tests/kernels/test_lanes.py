"""What the lane kernels compute: against plain Python, exact expectations, and the laws of chance.

A test of chance fails by chance less than once in 10**9 runs, all of its comparisons together.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hvd_compress.codecs.lanes import LaneFormat, MaskFormat, levels_of
from hvd_compress.kernels import fraction_bits, mix, mix32, scramble
from hvd_compress.kernels.host import KERNELS as HOST
from tests.kernels.buckets import VALUES, make_bucket, unaligned
from tests.kernels.lanes import pack, unpack

F = np.float32
TINY = 1e-9


def unit_scale(levels, norm=1.0):
    return np.array([min(levels * 2.0 ** fraction_bits(levels) / float(norm), float(np.finfo(F).max))], F)


def quantize(kernels, x, layout, key, scales=None, planes=None):
    """The codes, unpacked by the tests' own reader."""
    words = np.full(layout.words, -1, layout.dtype)
    scales = unit_scale(layout.levels) if scales is None else scales
    layout.encode(kernels, [x], scales, planes, key, words)
    codes = unpack(words, len(x), layout.width, layout.levels * layout.workers)
    np.testing.assert_array_equal(pack(codes, layout.width, layout.dtype), words)  # the padding is 0
    return codes


def code_of(x, scale, key, i, levels):
    """The code of element i, by the definition, in Python's integers."""
    bits = 30 - levels.bit_length()
    t = round(float(np.clip(F(x) * F(scale), -levels * 2.0**bits, levels * 2.0**bits)))  # ties to even
    line, e = divmod(i, 16)
    high, low = divmod(mix(key), 2**32)  # which is hash64(key, 0)
    h = ((line // 2 * 16 + e) * 0x9E3779B9 + low) % 2**32
    h = (h ^ h >> 16) * 0x7FEB352D % 2**32
    h = ((h ^ h >> 15) + high) % 2**32
    h = h * 0x846CA68B * (0x915F77F5 if line % 2 else 1) % 2**32
    return (t + (h >> 32 - bits)) >> bits


@pytest.mark.parametrize("values", sorted(VALUES))
@pytest.mark.parametrize(("bits", "workers"), [(2, 1), (2, 3), (4, 8), (8, 2), (12, 6), (16, 1024)])
def test_codes_and_sums_by_the_definition(kernels, values, bits, workers):
    d, levels = 501, levels_of(bits)
    layout = LaneFormat(d, levels, workers)
    x = make_bucket(bits, d, values, memory=False).a
    norm = kernels.norm([x], False)
    scale = unit_scale(levels, norm or 1.0)
    key = mix(bits, workers)
    codes = quantize(kernels, x, layout, key, scale)
    assert codes.tolist() == [code_of(x[i], scale[0], key, i, levels) for i in range(d)]
    words = pack(codes * workers, layout.width, layout.dtype)
    out = np.empty(d, F)
    layout.decode(kernels, words, np.array([0.37], F), None, out)
    np.testing.assert_array_equal(out, (codes * workers).astype(F) * F(0.37))


@pytest.mark.parametrize("cuts", [(0,), (1, 2, 3), (15, 16, 17), (16,), (496,), (31, 31, 500), range(1, 1000)])
def test_pieces_make_no_difference(kernels, cuts):
    x = make_bucket(0, 1003, memory=False).a / 4
    layout = LaneFormat(1003, 7, 8)
    mask = MaskFormat(1003, 8)
    limits = np.array([0.5, 0.25], F)
    scales = unit_scale(7) * np.array([1, 2, 4], F)
    ends = [0, *cuts, 1003]
    results = []
    for pieces in ([x], [unaligned(x[a:b], 5) for a, b in itertools.pairwise(ends)]):
        planes, words = mask.empty(2), layout.empty()
        kernels.mask(pieces, limits, mask.width, planes)
        layout.encode(kernels, pieces, scales, planes, 3, words)
        results.append((kernels.norm(pieces, True), kernels.norm(pieces, False), planes.tolist(), words.tolist()))
    assert results[0] == results[1]


def test_no_elements(kernels):
    nothing, words = np.empty(0, F), np.empty(0, np.int32)
    for pieces in ([], [nothing]):
        assert kernels.norm(pieces, True) == kernels.norm(pieces, False) == 0.0
        kernels.quantize(pieces, np.ones(1, F), None, 1, 1, 2, 0, words)
        kernels.mask(pieces, np.ones(1, F), 1, np.empty(0, np.int64))
    kernels.dequantize(words, None, 1, 1, 2, np.ones(1, F), nothing)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm(kernels, bad):
    x = make_bucket(1, 5003, "heavy tails", memory=False).a
    assert kernels.norm([x[:77], x[77:]], False) == np.abs(x).max()
    assert kernels.norm([x[:77], x[77:]], True) == pytest.approx(
        math.sqrt(math.fsum(x.astype(np.float64) ** 2)), rel=1e-12
    )
    x[3333] = bad
    for euclidean in (False, True):
        np.testing.assert_equal(kernels.norm([x], euclidean), abs(bad))


@pytest.mark.parametrize("bits", range(2, 17))
def test_levels_are_exact(kernels, bits):
    """A value on a level always gets its code (the norm the last one); beyond the norm, too; what is no number, any."""
    levels = levels_of(bits)
    codes = np.unique(np.clip(np.arange(-40, 41) * max(1, levels // 40), -levels, levels))
    others = [levels / 4, -levels, np.inf, -np.inf, 1e-42, -1e-42, 0, -0.0, np.nan]
    x = np.concatenate([codes / 8, others]).astype(F)
    layout = LaneFormat(len(x), levels, 3)
    for key in range(50):
        found = quantize(kernels, x, layout, mix(key), unit_scale(levels, levels / 8))
        np.testing.assert_array_equal(found[: len(codes)], codes)
        assert found[len(codes) : -1].tolist() == [levels, -levels, levels, -levels, 0, 0, 0, 0]


def test_the_smallest_gradients(kernels):
    """Denormals below the smallest norm that has a finite scale: the codes are smaller, and still unbiased."""
    x = np.full(16 * 4000, 2e-39, F)
    codes = quantize(kernels, x, LaneFormat(len(x), 7, 1), 5, np.array([np.finfo(F).max], F))
    expected = np.rint(x[0] * np.finfo(F).max) / 2.0 ** fraction_bits(7)
    assert abs(codes.mean() - expected) < math.sqrt(math.log(2 / TINY) / (2 * len(x)))  # Hoeffding


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_unbiased_over_the_keys(bits):
    """Each element's mean code over 20,000 keys, against its bound by Hoeffding's inequality."""
    keys, levels = 20_000, levels_of(bits)
    x = np.random.default_rng(bits).uniform(-1, 1, 64).astype(F)
    layout = LaneFormat(64, levels, 2)
    words, total, out = layout.empty(), np.zeros(64), np.empty(64, F)
    for key in range(keys):
        layout.encode(HOST, [x], unit_scale(levels), None, mix(1, key), words)
        layout.decode(HOST, words, np.ones(1, F), None, out)
        total += out
    error = np.abs(total / keys - x.astype(np.float64) * levels)
    assert error.max() < math.sqrt(math.log(2 * 64 / TINY) / (2 * keys)) + 2.0 ** -(fraction_bits(levels) - 7)


@pytest.mark.parametrize("scales", [2, 3])
def test_multi_scale(kernels, scales):
    """All workers agree on the finest scale that fits each element everywhere; the decoded sum is as fine as that."""
    d, workers = 3001, 5
    levels = (7, 56, 448)[:scales]
    layout, mask = LaneFormat(d, 7, workers), MaskFormat(d, workers)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((workers, d)) * 10.0 ** rng.uniform(-3, 0, (workers, d))).astype(F)
    norm = F(np.abs(x).max())
    limits = np.array([norm * F(7) / F(level) for level in levels[1:]], F)
    planes = sum((votes(kernels, row, limits, mask) for row in x), np.zeros((scales - 1) * mask.words, np.int64))
    above = [unpack(plane, d, mask.width, 0, mask.lanes) for plane in planes.reshape(scales - 1, -1)]
    np.testing.assert_array_equal(above, [(np.abs(x) > limit).sum(axis=0) for limit in limits])
    choice = np.zeros(d, int)
    for j, limit in enumerate(limits):
        choice += (choice == j) & (np.abs(x) <= limit).all(axis=0)
    assert set(choice) == set(range(scales))
    encoding = np.array([level * 2.0 ** fraction_bits(7) / norm for level in levels], F)
    decoding = np.array([norm / level for level in levels], F)
    words = np.zeros((workers, layout.words), layout.dtype)
    for worker, row in enumerate(words):
        layout.encode(kernels, [x[worker]], encoding, planes, mix(worker), row)
    out, alone = np.empty(d, F), np.empty((workers, d), F)
    layout.decode(kernels, words.sum(axis=0, dtype=layout.dtype), decoding, planes, out)
    for row, decoded in zip(words, alone, strict=True):  # a worker's own words are a sum as well
        layout.decode(kernels, row, decoding, planes, decoded)
    step = decoding[choice]
    assert (np.abs(alone - x) <= step * (1 + 1e-5)).all()
    np.testing.assert_allclose(out, alone.sum(axis=0), rtol=1e-5, atol=1e-5 * norm)


def votes(kernels, x, limits, mask):
    planes = np.full(len(limits) * mask.words, -1, np.int64)
    kernels.mask([x], limits, mask.width, planes)
    return planes


def test_votes_are_compared_as_bits(kernels):
    x = np.array([0.5, -0.5, np.nextafter(F(0.5), F(1)), np.nan, -np.inf, 0.0, -0.0, 1e-45], F)
    mask = MaskFormat(len(x), 1)
    for limit, expected in ((0.5, [0, 0, 1, 1, 1, 0, 0, 0]), (-0.0, [1, 1, 1, 1, 1, 0, 0, 1]), (np.inf, [0] * 3 + [1])):
        plane = votes(kernels, x, np.array([limit], F), mask)
        assert unpack(plane, len(x), 1, 0, 63).tolist() == expected + [0] * (len(x) - len(expected))


def unshift(x, n):
    """The inverse of ``x ^ x >> n``, for n >= 11."""
    return x ^ x >> np.uint32(n) ^ (x >> np.uint32(2 * n) if 2 * n < 32 else np.uint32(0))


def test_the_hash_is_a_bijection_of_either_half_of_the_key():
    """So that it is exactly uniform over the keys: what it is, the counter and one half determine the other."""
    rng = np.random.default_rng(0)
    counter = rng.integers(0, 2**32, 1000, np.uint32)
    for key in map(int, rng.integers(0, 2**64, 20, np.uint64)):
        low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
        forward = counter * np.uint32(0x9E3779B9) + low
        forward = (forward ^ forward >> np.uint32(16)) * np.uint32(0x7FEB352D)
        forward ^= forward >> np.uint32(15)
        backward = mix32(key, counter) * np.uint32(pow(0x846CA68B, -1, 2**32))
        np.testing.assert_array_equal(backward - forward, high)
        backward = unshift(backward - high, 15) * np.uint32(pow(0x7FEB352D, -1, 2**32))
        np.testing.assert_array_equal(unshift(backward, 16) - counter * np.uint32(0x9E3779B9), low)


def pairs(n):
    """Pairs of sequences of random numbers that should have nothing to do with each other."""
    h = scramble(mix(0), n)
    for lag in (1, 2, 3, 15, 16, 17, 31, 32, 48, 64, 256, 1024, 2**14, 2**17, 2**19):
        yield f"elements {lag} apart", h[:-lag], h[lag:]
    lines = h.reshape(-1, 2, 16)
    yield "the two lines of a hash", lines[:, 0].reshape(-1), lines[:, 1].reshape(-1)
    yield "the two lines of a hash, neighbours", lines[:, 0, 1:].reshape(-1), lines[:, 1, :-1].reshape(-1)
    for other in range(1, 5):
        yield f"step {other}", h, scramble(mix(other), n)
        yield f"worker {other}", scramble(mix(7, 7, 0), n), scramble(mix(7, 7, other), n)
        yield f"key + {other}", h, scramble(mix(0) + other, n)
        yield f"key + {other} * 2**32", h, scramble(mix(0) + (other << 32), n)


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def test_random_numbers_are_uniform_and_independent():
    """Chi-square of the pairs' upper 4 bits, and their correlation; of each byte alone."""
    n, tests = 2**20, 0
    for name, a, b in pairs(n):
        counts = np.bincount((a >> np.uint32(28)) * np.uint32(16) + (b >> np.uint32(28)), minlength=256)
        assert chi_square(counts, len(a) / 256) < stats.chi2.isf(TINY / 200, 255), name
        correlation = np.corrcoef(a.astype(float), b.astype(float))[0, 1]
        assert abs(correlation) * math.sqrt(len(a)) < stats.norm.isf(TINY / 400), name
        tests += 2
    for shift in range(0, 32, 8):
        for key in range(10):
            counts = np.bincount(scramble(mix(3, key), n) >> np.uint32(shift) & np.uint32(255), minlength=256)
            assert chi_square(counts, n / 256) < stats.chi2.isf(TINY / 200, 255), (shift, key)
            tests += 1
    assert tests <= 200


SIZES = [*range(1, 66), 97, 127, 128, 129, 255, 256, 257, 1000, 1023, 1024, 4093, 4096, 65_521, 65_535, 65_536, 65_537]


def permute(kernels, key, size, start=0, n=None):
    out = np.empty(size - start if n is None else n, np.uint32)
    kernels.permutation(key, start, size, out)
    return out


@pytest.mark.parametrize("size", SIZES)
def test_permutation_is_a_bijection(kernels, size):
    for key in range(3):
        p = permute(kernels, mix(key), size)
        assert np.array_equal(np.sort(p), np.arange(size))
        middle = size // 3
        assert np.array_equal(permute(kernels, mix(key), size, middle), p[middle:])


def test_a_large_permutation_is_a_bijection():
    for size in (10_000_019, 2**24, 3163**2 + 1):
        assert np.bincount(permute(HOST, mix(size), size), minlength=size).max() == 1


def test_permutation_of_all_indices_there_are(kernels):
    size = 2**32 - 1
    p = permute(kernels, 1, size, size - 1000)
    assert len(np.unique(p)) == 1000
    assert p.max() < size


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 17, 25, 31])
def test_permutation_is_uniform_over_the_keys(size):
    """Chi-square of where each index goes, and of where each two neighbours go."""
    keys = 20_000
    images = np.array([permute(HOST, mix(9, key), size) for key in range(keys)], np.int64)
    for i in range(size):
        counts = np.bincount(images[:, i], minlength=size)
        assert chi_square(counts, keys / size) < stats.chi2.isf(TINY / 2 / size, size - 1)
    for i in range(size - 1):
        pair = np.bincount(images[:, i] * size + images[:, i + 1], minlength=size * size)
        pair = np.delete(pair, np.arange(size) * (size + 1))  # never the same image
        limit = stats.chi2.isf(TINY / 2 / size, size * (size - 1) - 1)
        assert chi_square(pair, keys / (size * (size - 1))) < limit


def test_a_large_permutation_is_uniform():
    """The parts of the range that its first elements go to, over the keys; and those of all elements, for one key."""
    size = 1_000_003
    images = np.array([permute(HOST, mix(4, key), size, 0, 32) for key in range(20_000)], np.int64)
    for i in range(32):
        counts = np.bincount(images[:, i] * 64 // size, minlength=64)
        assert chi_square(counts, 20_000 / 64) < stats.chi2.isf(TINY / 100, 63)
    part = permute(HOST, mix(5), size).astype(np.int64) * 16 // size
    for lag in (1, 2, 16, 1000, 1001):  # 1001 is the side of the square
        counts = np.bincount(part[:-lag] * 16 + part[lag:], minlength=256)
        assert chi_square(counts, (size - lag) / 256) < stats.chi2.isf(TINY / 100, 255)
