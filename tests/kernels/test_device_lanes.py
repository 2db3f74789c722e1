"""The device kernels of quantizers give the reference's words, and its coordinates."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels import fraction_bits
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import KERNELS, array, tensor
from tests.kernels.lanes import length

LAYOUTS = [  # workers, levels, width, type of the words
    (2, 1, 3, np.int32),
    (3, 7, 6, np.int64),
    (1, 2**15 - 1, 17, np.int32),
    (1000, 127, 18, np.int64),
]
SCALES = {"one scale": [0.7], "three scales": [3.0, 0.5, 0.0]}
CUTS = {"one piece": [], "four pieces": [0.1, 0.1003, 0.5]}


def plane_words(d, width, count):
    return count * length(d, 63 // width)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=list(CUTS))
@pytest.mark.parametrize("scales", SCALES.values(), ids=list(SCALES))
@pytest.mark.parametrize(("workers", "levels", "width", "dtype"), LAYOUTS)
def test_words_and_what_they_mean(workers, levels, width, dtype, scales, cuts):
    d, key = 300, 2**64 - 9 - width
    bucket = make_bucket(width, d, "heavy tails", memory=False, cuts=cuts, bad="nan" if width == 6 else None)
    pieces = [tensor(piece) for piece in bucket.pieces]
    scales = np.array(scales, np.float32) * np.float32(levels << fraction_bits(levels))
    planes = None
    if len(scales) > 1:
        planes = np.zeros(plane_words(d, workers.bit_length(), len(scales) - 1), np.int64)
        REFERENCE.mask(bucket.pieces, np.array([1.0, 0.3], np.float32), workers.bit_length(), planes)
    words, expected = np.zeros((2, length(d, 8 * np.dtype(dtype).itemsize // width)), dtype)
    REFERENCE.quantize(bucket.pieces, scales, planes, workers, levels, width, key, expected)
    words, on_device = tensor(words), None if planes is None else tensor(planes)
    KERNELS.quantize(pieces, scales, on_device, workers, levels, width, key, words)
    same(array(words), expected)

    expected *= min(workers, 3)  # as that many workers would sum them
    factors, out, mean = 1 / np.maximum(scales, 1), KERNELS.empty(d), np.empty(d, np.float32)
    REFERENCE.dequantize(expected, planes, workers, levels, width, factors, mean)
    KERNELS.dequantize(tensor(expected), on_device, workers, levels, width, factors, out)
    same(array(out), mean)


def test_rounding_is_to_even_and_numbers_beyond_the_limit_are_cut():
    x = np.array([0.5, 1.5, -0.5, -2.5, 8388609, -8388608.5, 1e30, -np.inf, 2.0**29], np.float32)
    words, expected = tensor(np.zeros(16, np.int64)), np.zeros(16, np.int64)
    scales = np.ones(1, np.float32)
    KERNELS.quantize([tensor(x)], scales, None, 1, 2**15 - 1, 32, 3, words)
    REFERENCE.quantize([x], scales, None, 1, 2**15 - 1, 32, 3, expected)
    same(array(words), expected)


@pytest.mark.parametrize(("width", "cuts"), [(1, []), (9, []), (9, CUTS["four pieces"])])
def test_votes(width, cuts):
    d, limits = 150 * width, np.array([1.0, 0.0], np.float32)
    bucket = make_bucket(0, d, "signed zeros" if width == 1 else "normal", memory=False, cuts=cuts, bad="nan")
    planes = np.full(plane_words(d, width, len(limits)), 7, np.int64)
    expected = planes.copy()
    planes = tensor(planes)
    KERNELS.mask([tensor(piece) for piece in bucket.pieces], limits, width, planes)
    REFERENCE.mask(bucket.pieces, limits, width, expected)
    same(array(planes), expected)


@pytest.mark.parametrize(
    ("start", "size", "n"), [(0, 1, 1), (0, 150, 150), (777, 1000, 100), (2**32 - 101, 2**32 - 1, 100), (5, 9, 0)]
)
def test_permutation(start, size, n):
    out, expected = tensor(np.empty(n, np.uint32)), np.empty(n, np.uint32)
    KERNELS.permutation(2**63 + size, start, size, out)
    REFERENCE.permutation(2**63 + size, start, size, expected)
    same(array(out).view(np.uint32), expected)


def test_nothing_is_nothing():
    KERNELS.quantize([], np.ones(1, np.float32), None, 1, 1, 2, 1, tensor(np.empty(0, np.int32)))
    KERNELS.dequantize(tensor(np.empty(0, np.int32)), None, 1, 1, 2, np.ones(1, np.float32), KERNELS.empty(0))
    KERNELS.mask([], np.empty(0, np.float32), 1, tensor(np.empty(0, np.int64)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"levels": 0}, ValueError, "levels must be in"),
        ({"workers": 0}, ValueError, "workers must be >= 1"),
        ({"width": 33}, ValueError, "width must be in"),
        ({"width": 4}, ValueError, "too narrow"),
        ({"scales": np.array([-1], np.float32)}, ValueError, "scales must be finite"),
        ({"scales": np.empty(0, np.float32)}, ValueError, "scales must have 1 to 15"),
        ({"scales": np.ones(2, np.float32)}, ValueError, "planes must be None if and only if"),
        ({"words": tensor(np.zeros(32, np.float32))}, TypeError, "words must be int32 or int64"),
        ({"words": tensor(np.zeros(48, np.int32))}, ValueError, "words has 48 elements, not 32"),
    ],
)
def test_wrong_arguments_are_refused(change, error, match):
    pieces = [tensor(np.ones(100, np.float32))]
    arguments = {"scales": np.ones(1, np.float32), "workers": 2, "levels": 7, "width": 6}
    words = tensor(np.full(32, 5, np.int32))
    with pytest.raises(error, match=match):
        KERNELS.quantize(pieces, planes=None, key=1, **({"words": words} | arguments | change))
    assert (array(words) == 5).all()
