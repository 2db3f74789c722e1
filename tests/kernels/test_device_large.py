"""Offsets beyond 31 bits: payloads of many workers have more elements together than a bucket."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from hvd_compress.kernels.device.programs import payloads, ternary
from tests.kernels.device import DEVICE, KERNELS, torch

ROW = 2**30
"""Elements from row to row: the third begins behind 2**31 of them."""


@pytest.fixture
def third_row():
    """Three rows of which hardly a page is in memory, and the beginning of the third."""
    if DEVICE.type != "cpu":
        pytest.skip("a GPU has no memory that is not there")

    def make(dtype):
        nbytes = 3 * ROW * np.dtype(dtype).itemsize
        pages = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))
        rows = torch.from_numpy(np.frombuffer(pages, dtype))
        return rows, rows[2 * ROW :]

    return make


def test_dense_rows(third_row):
    rows, third = third_row(np.int16)
    third[:16] = torch.arange(1, 17, dtype=torch.bfloat16).view(torch.int16)
    out, infinite = torch.zeros(16), torch.zeros(1, dtype=torch.int32)
    KERNELS._launcher.launch(payloads.accumulate_dense, 1, rows, 3, ROW, 2.0, out, infinite, KIND=2, TILE=16)
    assert out.tolist() == list(range(2, 34, 2))
    assert infinite.tolist() == [0]


def test_ternary_rows(third_row):
    codes, third = third_row(np.uint8)
    third[:4] = 0x41  # the first of four is plus one scale, and so is the last
    out, bad = torch.zeros(16), torch.zeros(1, dtype=torch.int32)
    ends, scales = torch.tensor([16]), torch.ones(3)
    arguments = codes, ROW, 3, 16, ends, 1, scales, out, bad
    KERNELS._launcher.launch(ternary.accumulate, 1, *arguments, TILE=16)
    assert out.tolist() == [1, 0, 0, 1] * 4
