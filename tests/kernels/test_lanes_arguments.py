"""Wrong arguments of the lane kernels raise, name the argument, and write nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels.host import KERNELS as HOST

F = np.float32
RIGHT = {
    "quantize": {
        "pieces": [np.ones(100, F)], "scales": np.ones(2, F), "planes": np.zeros(16, np.int64), "workers": 8,
        "levels": 7, "width": 7, "key": 1, "words": np.full(32, 77, np.int32),
    },
    "dequantize": {
        "words": np.zeros(32, np.int32), "planes": np.zeros(16, np.int64), "workers": 8, "levels": 7, "width": 7,
        "scales": np.ones(2, F), "out": np.full(100, 77, F),
    },
    "mask": {
        "pieces": [np.ones(100, F)], "limits": np.array([2, 1], F), "width": 4, "planes": np.full(32, 77, np.int64),
    },
    "permutation": {"key": 1, "start": 3, "size": 10, "out": np.full(7, 77, np.uint32)},
}  # fmt: skip
OUTPUT = {"quantize": "words", "dequantize": "out", "mask": "planes", "permutation": "out"}
both = ("quantize", "dequantize")
VALUES = [
    (both, {"levels": 0}, r"levels must be in \[1, 32767\], not 0"),
    (both, {"levels": 32_768}, "levels must be"),
    (both, {"workers": 0}, "workers must be >= 1, not 0"),
    (both, {"width": 1}, r"width must be in \[2, 32\], not 1"),
    (both, {"width": 33}, r"width must be in \[2, 32\], not 33"),
    (both, {"workers": 10}, "width is 7, too narrow for the sum of 10 codes of up to 7"),
    (both, {"words": np.zeros(31, np.int32)}, "words has 31 elements, not 32"),
    (both, {"words": np.zeros(32, np.int64)}, "words has 32 elements, not 16"),
    (both, {"planes": None}, "planes must be None if and only if there is one scale"),
    (both, {"scales": np.ones(1, F)}, "planes must be None if and only if there is one scale"),
    (both, {"scales": np.ones(0, F)}, "scales must have 1 to 15 elements, not 0"),
    (both, {"scales": np.ones(16, F)}, "scales must have 1 to 15 elements, not 16"),
    (both, {"scales": np.ones(3, F)}, "planes has 16 elements, not 32"),
    (both, {"planes": np.zeros(17, np.int64)}, "planes has 17 elements, not 16"),
    (("quantize",), {"scales": np.array([1, np.inf], F)}, "scales must be finite and >= 0"),
    (("quantize",), {"scales": np.array([np.nan, 1], F)}, "scales must be finite and >= 0"),
    (("quantize",), {"scales": np.array([1, -1], F)}, "scales must be finite and >= 0"),
    (("mask",), {"width": 0}, r"width must be in \[1, 32\], not 0"),
    (("mask",), {"width": 33}, r"width must be in \[1, 32\], not 33"),
    (("mask",), {"limits": np.array([1, 2], F)}, "limits must be up to 14 numbers >= 0 that do not ascend"),
    (("mask",), {"limits": np.array([1, -1], F)}, "limits must be"),
    (("mask",), {"limits": np.array([np.nan, 1], F)}, "limits must be"),
    (("mask",), {"limits": np.ones(15, F)}, "limits must be"),
    (("mask",), {"planes": np.zeros(33, np.int64)}, "planes has 33 elements, not 32"),
    (("permutation",), {"size": 0}, r"size must be in \[1, 2\*\*32\), not 0"),
    (("permutation",), {"size": 2**32}, "size must be"),
    (("permutation",), {"start": -1}, "start = -1"),
    (("permutation",), {"start": 4}, "start = 4 and the length of out, 7, exceed the size 10"),
]


def refuses(kernels, name, change, error, message):
    arguments = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in RIGHT[name].items()} | change
    with pytest.raises(error, match=message):
        getattr(kernels, name)(**arguments)
    if OUTPUT[name] not in change:
        assert (arguments[OUTPUT[name]] == 77).all()


@pytest.mark.parametrize("name", RIGHT)
def test_right_arguments(kernels, name):
    getattr(kernels, name)(**RIGHT[name] | {OUTPUT[name]: RIGHT[name][OUTPUT[name]].copy()})


@pytest.mark.parametrize(("names", "change", "message"), VALUES)
def test_wrong_values(kernels, names, change, message):
    for name in names:
        refuses(kernels, name, change, ValueError, message)


bucket, wide = np.zeros(300, F), np.zeros(100, np.int64)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("quantize", {"words": np.zeros(32, np.uint32)}, TypeError, "words must be int32 or int64"),
        ("quantize", {"words": np.zeros(32, F)}, TypeError, "words must be int32 or int64"),
        ("quantize", {"words": np.zeros(129, np.uint8)[1:].view(np.int32)}, ValueError, "words must be aligned"),
        ("quantize", {"planes": np.zeros(16, np.uint64)}, TypeError, "planes must be int64"),
        ("quantize", {"scales": np.ones(2)}, TypeError, "scales must be float32"),
        ("quantize", {"pieces": [np.ones(100)]}, TypeError, r"pieces\[0\] must be float32"),
        (
            "quantize",
            {"pieces": [bucket[:100]], "words": bucket[99:131].view(np.int32)},
            ValueError,
            r"words overlaps pieces\[0\]",
        ),
        ("quantize", {"planes": wide[:16], "words": wide[:16].view(np.int32)}, ValueError, "words overlaps planes"),
        ("dequantize", {"out": np.zeros(100)}, TypeError, "out must be float32"),
        ("dequantize", {"out": bucket[:100], "words": bucket[:32].view(np.int32)}, ValueError, "out overlaps words"),
        ("dequantize", {"out": wide[:50].view(F), "planes": wide[:16]}, ValueError, "out overlaps planes"),
        ("mask", {"planes": np.zeros(32, np.int32)}, TypeError, "planes must be int64"),
        ("mask", {"limits": np.ones(2)}, TypeError, "limits must be float32"),
        ("mask", {"pieces": [wide[:50].view(F)], "planes": wide[40:72]}, ValueError, r"planes overlaps pieces\[0\]"),
        ("permutation", {"out": np.zeros(7, np.int32)}, TypeError, "out must be uint32"),
    ],
)
def test_wrong_arrays(name, change, error, message):
    refuses(HOST, name, change, error, message)


def test_read_only_words():
    words = np.zeros(32, np.int32)
    words.flags.writeable = False
    refuses(HOST, "quantize", {"words": words}, TypeError, "words must be a writable array")
    HOST.dequantize(**RIGHT["dequantize"] | {"words": words})


def test_keys_are_64_bits(kernels):
    outs = np.zeros((2, 100), np.uint32)
    for key, out in zip((5, 5 + 2**64), outs, strict=True):
        kernels.permutation(key, 0, 100, out)
    np.testing.assert_array_equal(*outs)
