"""Range-based floats: every code of every format up to 12 bits, and random numbers beyond."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import CorruptPayload, kernels
from hvd_compress.codecs.range_float import NBYTES, RangeFloat, check_widths, fit
from hvd_compress.kernels import packed_bytes

TINY, HUGE = 2.0**-149, float(np.finfo(np.float32).max)
RANGES = {
    "symmetric": (-1.0, 1.0),
    "one side is small": (-1e-3, 2.5),
    "one side is tiny": (-1e-30, 3.0),
    "positive": (0.0, 0.7),
    "negative": (-123.456, 0.0),
    "zeros": (0.0, 0.0),
    "denormals": (-37 * TINY, 100 * TINY),
    "one denormal": (0.0, TINY),
    "across the smallest normal": (-1e-37, 2e-38),
    "everything": (-HUGE, HUGE),
}
FORMATS = [(bits, m) for bits in range(4, 13) for m in range(bits + 1)]
NUMBERS = st.floats(-HUGE, HUGE, width=32)


def encode(f: RangeFloat, values: Any, key: int | None = None) -> np.ndarray:
    """Codes, unpacked by the test's own arithmetic."""
    x = np.asarray(values, np.float32)
    packed = np.empty(packed_bytes(len(x), f.bits), np.uint8)
    f.encode(kernels.get(), x, packed, key)
    if f.bits in (8, 16):
        return packed.view(f"<u{f.bits // 8}").astype(np.int64)
    number = int.from_bytes(packed.tobytes(), "little")
    assert number >> len(x) * f.bits == 0
    text = f"{number:0{len(x) * f.bits}b}"
    return np.array([int(text[i : i + f.bits], 2) for i in range(len(text) - f.bits, -1, -f.bits)], np.int64)


def round_trip(f: RangeFloat, values: Any, key: int | None = None) -> np.ndarray:
    x = np.asarray(values, np.float32)
    packed = np.empty(packed_bytes(len(x), f.bits), np.uint8)
    f.encode(kernels.get(), x, packed, key)
    return f.decode(kernels.get(), packed, np.empty(len(x), np.float32))


def formats(low: float, high: float) -> Iterator[RangeFloat]:
    for bits, m in FORMATS:
        yield RangeFloat(bits, m, low, high)


def neighbours(f: RangeFloat, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of the format next to each x, in float64."""
    values = np.sort(f.table.astype(np.float64))
    above = np.clip(np.searchsorted(values, x.astype(np.float64), side="right"), None, len(values) - 1)
    return values[np.maximum(above - 1, 0)], values[above]


@pytest.mark.parametrize("name", RANGES)
def test_every_code(name: str) -> None:
    """Every value of every format comes back as itself; values are distinct and in order; zero, min and max are exact;
    every code is used if the range has so many magnitudes."""
    low, high = np.float32(RANGES[name])
    for f in formats(low, high):
        code, values = f.code, f.table
        positive, negative = values[1 : code.positives + 1], values[code.positives + 1 :]
        assert len(values) == 1 + code.positives + code.negatives <= 2**f.bits
        assert values[0] == 0
        assert (np.diff(positive.astype(np.float64), prepend=0) > 0).all()
        assert (np.diff(negative.astype(np.float64), prepend=0) < 0).all()
        assert max(values) == high
        assert min(values) == low
        np.testing.assert_array_equal(encode(f, values), np.arange(len(values)))
        np.testing.assert_array_equal(round_trip(f, values), values)
        np.testing.assert_array_equal(round_trip(f, -values[:1]), [0])  # minus zero


@pytest.mark.parametrize("name", RANGES)
def test_eps_is_the_smallest_possible(name: str) -> None:
    """With a base one lower there would be too many codes: counted one by one."""
    low, high = RANGES[name]
    for f in formats(low, high):
        if f.bits > 9:
            continue
        shift, base = 23 - f.mantissa, f.code.base

        def needed(base: int, f: RangeFloat = f, shift: int = shift) -> int:
            total = 0
            for end in (f.high, -f.low):
                count, grid = 0, base << shift
                while end and np.uint32(grid).view(np.float32) < end and count <= 2**f.bits:
                    count, grid = count + 1, grid + (1 << shift)
                total += count + 1 if end else 0
            return total

        assert needed(base) == len(f.table) - 1 < 2**f.bits
        assert base == 1 or needed(base - 1) >= 2**f.bits


@pytest.mark.parametrize("name", RANGES)
def test_between_the_codes(name: str) -> None:
    """Around the values, the midpoints and the ends of every format: monotonic, and within half a step, exactly."""
    low, high = RANGES[name]
    for f in formats(low, high):
        values = np.sort(f.table.astype(np.float64))
        middles = (values[1:] + values[:-1]) / 2
        points = np.concatenate([values, middles]).astype(np.float32)
        ends = np.float32(f.low), np.float32(f.high)
        points = np.concatenate([points, *(np.nextafter(points, end) for end in ends)])
        points = np.sort(np.clip(points, *ends))
        decoded = round_trip(f, points)
        assert (np.diff(decoded.astype(np.float64)) >= 0).all()
        below, above = neighbours(f, points)
        wide = points.astype(np.float64)
        # differences of float32 are exact in float64 unless they differ by more than 2**29: then it is no close call
        assert (np.abs(decoded - wide) <= np.minimum(wide - below, above - wide)).all()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bits", [4, 8, 11])
def test_stochastic_rounding(name: str, bits: int) -> None:
    """One of the two neighbours, each with the right probability; values of the format stay."""
    low, high = RANGES[name]
    for m in range(0, bits + 1, 3):
        f = RangeFloat(bits, m, low, high)
        np.testing.assert_array_equal(round_trip(f, f.table, 7), f.table)
        for share in (0.03, 0.5, 0.9):
            values = np.sort(f.table.astype(np.float64))
            cell = len(values) // 2 if len(values) > 2 else 0
            for at in {max(cell - 1, 0), cell, len(values) - 2} if len(values) > 1 else ():
                lo, hi = values[at], values[at + 1]
                x = np.float32(lo + share * (hi - lo))
                decoded = round_trip(f, np.full(4000, x), 11 + at).astype(np.float64)
                assert set(decoded) <= {lo, hi}
                expected = (float(x) - lo) / (hi - lo)
                assert abs((decoded == hi).mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3


@given(
    low=NUMBERS, high=NUMBERS, bits=st.integers(4, 16), m=st.integers(0, 16),
    x=st.lists(NUMBERS, min_size=1), seed=st.integers(0, 2**64 - 1)
)  # fmt: skip
def test_any_range(low: float, high: float, bits: int, m: int, x: list[float], seed: int) -> None:
    f = RangeFloat(bits, min(m, bits), -abs(low), abs(high))
    points = np.sort(np.clip(np.array(x, np.float32), f.low, f.high))
    decoded = round_trip(f, points)
    assert (np.diff(encode(f, np.abs(points[points > 0]))) >= 0).all()
    below, above = neighbours(f, points)
    for exact, number, lo, hi in zip(points.tolist(), decoded.tolist(), below.tolist(), above.tolist(), strict=True):
        off = abs(Fraction(exact) - Fraction(number))
        assert off <= min(Fraction(exact) - Fraction(lo), Fraction(hi) - Fraction(exact))
    assert ((round_trip(f, points, seed) == below) | (round_trip(f, points, seed) == above)).all()
    header = np.empty(NBYTES, np.uint8)
    f.write(header)
    assert RangeFloat.read(header, bits) == f
    np.testing.assert_array_equal(f.table[[0, f.code.positives]], [0, f.high])
    np.testing.assert_array_equal(round_trip(f, [0.0, f.low, f.high]), np.float32([0.0, f.low, f.high]))
    np.testing.assert_array_equal(round_trip(f, [HUGE, -HUGE]), np.float32([f.high, f.low]))


@given(bits=st.integers(4, 16), share=st.floats(0, 1), m=st.integers(0, 16), n=st.integers(0, 100))
def test_packing(bits: int, share: float, m: int, n: int) -> None:
    """Codes are where the format says they are, whatever the number of bits and of codes."""
    f = RangeFloat(bits, min(m, bits), -1.0, 2.0)
    codes = np.random.default_rng(n).integers(0, len(f.table), n)
    np.testing.assert_array_equal(encode(f, f.table[codes]) if n else codes, codes)


def test_mantissa_is_the_best() -> None:
    rng = np.random.default_rng(0)
    k = kernels.get()
    for values in (rng.standard_normal(1000), rng.laplace(size=1000) ** 5, rng.uniform(1, 1.01, 900), np.full(9, 3.0)):
        x = values.astype(np.float32)
        low, high = float(x.min()), float(x.max())
        for bits in (4, 8, 12):
            errors = [
                float(np.square(x.astype(np.float64) - round_trip(fit(k, x, bits, m, low, high), x)).sum())
                for m in range(bits + 1)
            ]
            assert fit(k, x, bits, None, low, high).mantissa == int(np.argmin(errors))
    # wide ranges want exponents, narrow ones mantissas
    wide, narrow = np.geomspace(1e-6, 1, 500, dtype=np.float32), np.linspace(0.9, 1, 500, dtype=np.float32)
    assert fit(k, wide, 8, None, 0, 1).mantissa < fit(k, narrow, 8, None, 0, 1).mantissa == 8


def test_an_empty_sample() -> None:
    f = fit(kernels.get(), np.zeros(0, np.float32), 8, None, 0.0, 0.0)
    assert f.table.tolist() == [0.0]
    assert f.eps == 0


def test_arguments() -> None:
    for bits, m, error, message in (
        (3, 1, ValueError, "bits must be from 4 to 16, got 3"),
        (17, 1, ValueError, "bits must be from 4 to 16, got 17"),
        (8.0, 1, TypeError, "bits must be an int, got 8.0"),
        (True, 1, TypeError, "bits must be an int"),
        (8, -1, ValueError, "mantissa must be at least 0, got -1"),
        (8, 9, ValueError, "mantissa must be from 0 to bits=8 .* got 9"),
        (8, "3", TypeError, "mantissa must be an int, got '3'"),
    ):
        with pytest.raises(error, match=message):
            check_widths(bits, m)  # type: ignore[arg-type]
    for low, high in ((0.1, 1.0), (-1.0, -0.1), (-np.inf, 1.0), (0.0, np.nan), (0.0, 1e39)):
        with pytest.raises(ValueError, match="the range must be finite and have zero in it"):
            RangeFloat(8, 3, low, high)


def test_corrupt_formats() -> None:
    f = RangeFloat(8, 3, -1.0, 2.0)
    good = np.empty(NBYTES, np.uint8)
    f.write(good)
    assert good[:4].tobytes() == bytes([8, 3, 0, 0])
    with pytest.raises(CorruptPayload, match="has 8 bits, expected 10"):
        RangeFloat.read(good, 10)
    changed = 0
    for offset in range(NBYTES):
        for bit in range(8):
            bad = good.copy()
            bad[offset] ^= 1 << bit
            try:
                other = RangeFloat.read(bad, 8)
            except CorruptPayload:
                changed += 1
            else:  # another range with the same base
                assert other.code.base == f.code.base
                assert offset >= 8
    assert changed > 80


def test_corrupt_codes() -> None:
    f = RangeFloat(8, 0, 0.0, 2.0**-140)
    assert len(f.table) < 20
    out = np.full(3, 7, np.float32)
    with pytest.raises(CorruptPayload, match="code"):
        f.decode(kernels.get(), np.array([1, 2, 19], np.uint8), out)
    assert (out == 7).all()
