"""The device kernels of ternary codes give the reference's bytes and sums."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import KERNELS, array, tensor

ENDS = {"one section": [301], "six sections": [1, 2, 70, 150, 299, 301]}
sections = pytest.mark.parametrize("ends", ENDS.values(), ids=list(ENDS))


@sections
@pytest.mark.parametrize("bad", [None, "nan", "inf"])
def test_ternarize(ends, bad):
    x = make_bucket(1, 301, "heavy tails", memory=False, bad=bad).pieces[0]
    ends, scales = np.array(ends), np.linspace(0.5, 4, len(ends), dtype=np.float32)
    codes, expected = np.full((2, 76), 255, np.uint8)
    KERNELS.ternarize(tensor(x), ends, scales, 2**63 + 1, codes)
    REFERENCE.ternarize(x, ends, scales, 2**63 + 1, expected)
    same(codes, expected)


@sections
@pytest.mark.parametrize("bad", [None, "nan", "inf"])
def test_section_moments(ends, bad):
    x = make_bucket(2, 301, "heavy tails", memory=False, bad=bad).pieces[0]
    found, expected = (
        kernels.section_moments(y, np.array(ends)) for kernels, y in ((KERNELS, tensor(x)), (REFERENCE, x))
    )
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        same(np.nan_to_num(left, nan=7), np.nan_to_num(right, nan=7))


@sections
def test_accumulate_ternary(ends):
    rng = np.random.default_rng(0)
    payloads = rng.choice(np.array([0x00, 0x18, 0x61, 0x92, 0x46], np.uint8), (3, 90))
    scales = rng.random((3, len(ends)), np.float32)
    out, expected = KERNELS.empty(301), np.empty(301, np.float32)
    assert KERNELS.accumulate_ternary(payloads, 9, np.array(ends), scales, out)
    REFERENCE.accumulate_ternary(payloads, 9, np.array(ends), scales, expected)
    same(array(out), expected)


@pytest.mark.parametrize(("byte", "bits"), [(0, 0x03), (40, 0xC0), (75, 0xC0)])
def test_a_code_that_means_nothing_is_found(byte, bits):
    """In the last byte it is behind the last element."""
    payloads = np.zeros((2, 76), np.uint8)
    payloads[1, byte] = bits
    arguments = payloads, 0, np.array([301]), np.ones((2, 1), np.float32)
    assert not KERNELS.accumulate_ternary(*arguments, KERNELS.empty(301))
    assert not REFERENCE.accumulate_ternary(*arguments, np.empty(301, np.float32))


@pytest.mark.parametrize("ends", [[300], [302], [5, 5, 301], [0, 301]])
def test_sections_that_do_not_fit_are_refused(ends):
    ends, x, codes = np.array(ends), tensor(np.ones(301, np.float32)), np.full(76, 7, np.uint8)
    with pytest.raises(ValueError, match="ends must ascend"):
        KERNELS.ternarize(x, ends, np.ones(len(ends), np.float32), 1, codes)
    assert (codes == 7).all()
    with pytest.raises(ValueError, match="ends must ascend"):
        KERNELS.accumulate_ternary(np.zeros((1, 76), np.uint8), 0, ends, np.ones((1, len(ends)), np.float32), x)
