"""The ternary kernels: every instruction set gives the reference's bytes, and they mean what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd_compress.kernels.host import KERNELS as HOST
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import same

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
cuts_of = st.lists(st.floats(0, 1), max_size=5)


def sections(d: int, cuts: list[float]) -> np.ndarray:
    return np.array(sorted({d, *(max(1, int(cut * d)) for cut in cuts)}) if d else [], np.int64)


@many
@given(d=st.integers(0, 300) | st.integers(4000, 9000), cuts=cuts_of, rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_identical(host, d, cuts, rows, seed):
    rng = np.random.default_rng(seed)
    ends = sections(d, cuts)
    x = (rng.standard_normal(d) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    x[rng.random(d) < 0.1] = rng.choice([0.0, -0.0, np.nan, 1e-45, -1e-45])
    scales = np.abs(rng.standard_normal((rows, len(ends)), dtype=np.float32)) * np.nanmax(np.abs(x), initial=0)
    results = []
    for kernels in (host, REFERENCE):
        payloads = np.full((rows, 5 + -(-d // 4)), 0xFF, np.uint8)
        for row in range(rows):
            kernels.ternarize(x, ends, scales[row], 2**63 + row, payloads[row, 5:])
        out = np.full(d, np.nan, np.float32)
        assert kernels.accumulate_ternary(payloads, 5, ends, scales, out)
        moments = kernels.section_moments(x, ends)
        assert [array.dtype for array in moments] == [np.float32, np.float64, np.float64]
        results.append((payloads, out, *map(np.nan_to_num, moments)))  # which NaN it is, is not said
    same(*results)


def test_codes_and_sums(kernels):
    x = np.array([2, -2, 0, 3, -3, np.nan], np.float32)
    ends, scales = np.array([3, 6], np.int64), np.array([2, 3], np.float32)
    codes = np.empty(2, np.uint8)
    kernels.ternarize(x, ends, scales, 1, codes)  # what is as large as the scale is never zero
    assert codes.tolist() == [1 | 2 << 2 | 1 << 6, 2]
    out = np.empty(6, np.float32)
    assert kernels.accumulate_ternary(np.stack([codes, codes]), 0, ends, np.stack([scales, 2 * scales]), out)
    assert out.tolist() == [6, -6, 0, 9, -9, 0]


def test_moments_of_sections(kernels):
    """In the order of lanes that begins anew in every section."""
    x = np.array([3, -4, -0.0, *[2.0**60, 1, *[0] * 14, -(2.0**60), 1]], np.float32)
    moments = kernels.section_moments(x, np.array([2, 3, 21]))
    same(moments.largest, np.array([4, 0, 2.0**60], np.float32))
    same(moments.totals, np.array([-1.0, 0.0, 2.0]))
    same(moments.squares, np.array([25, 0, 2.0**121]))
    assert all(len(array) == 0 for array in kernels.section_moments(x[:0], np.zeros(0, np.int64)))
    x[[0, 2]] = np.inf, np.nan
    assert kernels.section_moments(x, np.array([2, 21])).largest[0] == np.inf
    assert np.isnan(kernels.section_moments(x, np.array([21])).largest[0])


def test_zero_and_infinite_scales(kernels):
    x = np.array([1.0, -1.0, 0.0, 0.0], np.float32)
    codes = np.empty(1, np.uint8)
    kernels.ternarize(x, np.array([4], np.int64), np.zeros(1, np.float32), 1, codes)
    assert codes.tolist() == [1 | 2 << 2]
    kernels.ternarize(x, np.array([4], np.int64), np.full(1, np.inf, np.float32), 1, codes)
    assert codes.tolist() == [0]


@pytest.mark.parametrize("at", [0, 5000, 9999])
def test_a_code_that_means_nothing(kernels, at):
    payloads = np.zeros((3, 2500), np.uint8)
    payloads[1, at // 4] = 3 << 2 * (at % 4)
    out = np.empty(10_000, np.float32)
    assert not kernels.accumulate_ternary(payloads, 0, np.array([10_000]), np.ones((3, 1), np.float32), out)


@pytest.mark.parametrize("kernels_", [HOST, REFERENCE], ids=["host", "reference"])
@pytest.mark.parametrize(
    ("ends", "codes", "message"),
    [([4, 3, 8], 2, "ascend"), ([0, 8], 2, "ascend"), ([4], 2, "8"), ([4, 9], 2, "8"), ([8], 3, "codes")],
)
def test_arguments(kernels_, ends, codes, message):
    x, bounds = np.ones(8, np.float32), np.array(ends, np.int64)
    scales = np.ones(len(ends), np.float32)
    with pytest.raises(ValueError, match=message):
        kernels_.ternarize(x, bounds, scales, 0, np.empty(codes, np.uint8))
    if message != "codes":
        with pytest.raises(ValueError, match=message):
            kernels_.section_moments(x, bounds)


@pytest.mark.parametrize("kernels_", [HOST, REFERENCE], ids=["host", "reference"])
@pytest.mark.parametrize(("shape", "at"), [((2, 1), 2), ((3, 1), 3), ((3, 2), 2), ((3, 1), -1)])
def test_arguments_of_the_sum(kernels_, shape, at):
    """Three payloads of four bytes, with eight elements in one section, are sound from byte 2 on."""
    payloads, out = np.zeros((3, 4), np.uint8), np.empty(8, np.float32)
    ends = np.array([8], np.int64)
    assert kernels_.accumulate_ternary(payloads, 2, ends, np.ones((3, 1), np.float32), out)
    with pytest.raises(ValueError, match=r"scales|codes_at"):
        kernels_.accumulate_ternary(payloads, at, ends, np.ones(shape, np.float32), out)
