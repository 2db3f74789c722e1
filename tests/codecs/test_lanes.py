"""Lane formats: how wide, which word, how many; sums at the boundary do not touch their neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.codecs.lanes import LaneFormat, MaskFormat, bytes_per_element, largest_bits, levels_of
from hvd_compress.kernels import fraction_bits
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.lanes import pack, unpack

BITS = range(2, 17)
WORKERS = (1, 2, 3, 4, 5, 8, 16, 100, 1024)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("bits", BITS)
def test_layout(bits: int, workers: int) -> None:
    layout = LaneFormat(1000, levels_of(bits), workers)
    assert 2 * layout.levels * workers < 2**layout.width
    assert 2 * layout.levels * workers >= 2 ** (layout.width - 1)
    word = 8 * layout.dtype.itemsize
    assert layout.lanes == word // layout.width
    assert layout.words == 16 * -(-63 // layout.lanes)
    assert layout.nbytes == layout.words * word // 8
    assert layout.empty().nbytes == layout.nbytes
    other = 96 - word
    if word == 32:
        assert 4 / layout.lanes <= 8 / (other // layout.width)
    else:
        assert 8 / layout.lanes < 4 / (other // layout.width)
    assert bytes_per_element(bits, workers) == layout.dtype.itemsize / layout.lanes


@pytest.mark.parametrize("workers", WORKERS)
def test_masks(workers: int) -> None:
    layout = MaskFormat(16 * 63 + 1, workers)
    assert 2 ** (layout.width - 1) <= workers < 2**layout.width
    assert layout.lanes == 63 // layout.width
    assert layout.words == 16 * -(-64 // layout.lanes)
    assert layout.nbytes == 8 * layout.words
    assert layout.empty(2).shape == (2 * layout.words,)


def test_what_does_not_fit() -> None:
    assert largest_bits(65_537) == 16
    assert largest_bits(65_539) == 15
    assert largest_bits(2**31 - 1) == 2
    assert largest_bits(2**31) == 0
    LaneFormat(1, levels_of(16), 65_537)
    with pytest.raises(ValueError, match=r"needs 33 bits.* use at most 15 bits for 65539 workers"):
        LaneFormat(1, levels_of(16), 65_539)
    with pytest.raises(ValueError, match="levels must be from 1 to 32767, not 0"):
        LaneFormat(1, 0, 1)
    with pytest.raises(ValueError, match="size must be >= 0"):
        LaneFormat(-1, 1, 1)
    for workers in (0, 2**32):
        with pytest.raises(ValueError, match=f"workers must be from 1 .*, not {workers}"):
            MaskFormat(1, workers)
    for bits in (1, 17):
        with pytest.raises(ValueError, match=f"bits must be from 2 to 16, not {bits}"):
            levels_of(bits)


def most_workers(levels: int, width: int) -> int:
    return (2**width - 1) // (2 * levels)


@pytest.mark.parametrize("word", [32, 64])
@pytest.mark.parametrize("bits", BITS)
def test_the_most_workers_of_every_width(bits: int, word: int) -> None:
    """All codes at an end, and mixed, in every lane: each partial sum fits the word, and comes apart again."""
    levels = levels_of(bits)
    for width in range((2 * levels).bit_length(), 33):
        workers = most_workers(levels, width)
        assert (2 * levels * workers).bit_length() == width
        assert (2 * levels * (workers + 1)).bit_length() == width + 1
        lanes = word // width
        for codes in (
            [levels] * lanes,
            [-levels] * lanes,
            [levels if j % 2 else -levels for j in range(lanes)],
            [-levels] + [levels] * (lanes - 1),
            [levels - 1 - j % 2 for j in range(lanes)],
        ):
            one = sum(c << width * j for j, c in enumerate(codes))
            for summed in {1, workers // 2, workers}:
                total = summed * one
                assert -(2 ** (word - 1)) <= total < 2 ** (word - 1)
                words = np.full(16, total, np.int32 if word == 32 else np.int64)
                assert unpack(words, 16 * lanes, width, levels * workers).reshape(lanes, 16)[:, 3].tolist() == [
                    summed * c for c in codes
                ]
                out = np.empty(16 * lanes, np.float32)
                REFERENCE.dequantize(words, None, workers, levels, width, np.ones(1, np.float32), out)
                np.testing.assert_array_equal(out.reshape(lanes, 16)[:, 5], np.float32([summed * c for c in codes]))


@pytest.mark.parametrize(("bits", "workers"), [(2, 2), (4, 8), (8, 4), (16, 3)])
def test_workers_sum_in_any_order(bits: int, workers: int) -> None:
    """Encode, add up with NumPy's wrapping integers, decode: the sum of what each one decodes alone."""
    layout = LaneFormat(777, levels_of(bits), workers)
    rng = np.random.default_rng(bits)
    scale = np.array([layout.levels * 2.0 ** fraction_bits(layout.levels) / 4], np.float32)
    words = np.zeros((workers, layout.words), layout.dtype)
    for row in words:
        x = rng.standard_normal(777).astype(np.float32)
        layout.encode(REFERENCE, [x], scale, None, int(rng.integers(2**63)), row)
    alone, together = np.empty((workers, 777), np.float32), np.empty(777, np.float32)
    for row, out in zip(words, alone, strict=True):
        layout.decode(REFERENCE, row, np.ones(1, np.float32), None, out)
    layout.decode(REFERENCE, words.sum(axis=0, dtype=layout.dtype), np.ones(1, np.float32), None, together)
    np.testing.assert_array_equal(together, alone.sum(axis=0))
    assert np.abs(alone).max() <= layout.levels
    np.testing.assert_array_equal(pack(alone[0].astype(int), layout.width, layout.dtype), words[0])
