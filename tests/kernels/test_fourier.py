"""The transform: identical in every kernel set, right by NumPy's float64 FFT, orthogonal, and safe from overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd_compress.kernels.fourier import Transform, twiddle_factors
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.gradients import DISTRIBUTIONS, gradient
from tests.kernels.buckets import same, unaligned

BLOCKS = [16, 32, 64, 128, 1024, 4096, 65_536]
SIZES = [1, 2, 3, 16, 17, 100, 101, 4096, 4099, 17 * 4096 + 333]


def there_and_back(transform, x, minuend=None):
    spectrum, out = np.full(2 * transform.pairs, np.nan, np.float32), np.full(len(x), np.nan, np.float32)
    transform.forward(x, spectrum)
    transform.inverse(spectrum, 1.0, minuend, out)
    return spectrum, out


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 35), block=st.sampled_from(BLOCKS[:-1]), distribution=st.sampled_from(sorted(DISTRIBUTIONS)),
    scale=st.sampled_from([1.0, 0.25, 1e30]), where=st.sampled_from(["none", "apart", "out"]),
    offset=st.integers(0, 15),
)  # fmt: skip
def test_identical(host, count, block, distribution, scale, where, offset):
    x = unaligned(gradient(distribution, count * block, block), offset)
    results = []
    for kernels in (host, REFERENCE):
        spectrum, out = np.empty_like(x), np.linspace(0, 1, len(x), dtype=np.float32)
        kernels.forward(x, block, spectrum)
        minuend = {"none": None, "apart": x, "out": out}[where]
        kernels.inverse(spectrum, block, scale, minuend, out)
        results.append((spectrum, out))
    same(*results)


def test_identical_where_stores_stream(host):
    x = gradient("normal", 500 * 4096, 1)
    out, expected = host.empty(len(x)), np.empty_like(x)
    host.forward(x, 4096, out)
    REFERENCE.forward(x, 4096, expected)
    same(out, expected)
    back = host.empty(len(x))
    host.inverse(out, 4096, 1.0, None, back)
    REFERENCE.inverse(out, 4096, 1.0, None, expected)
    same(back, expected)


def exact(x, block):
    """The spectrum by NumPy in float64, block by block."""
    unit = block or 1 << max(len(x) - 1, 0).bit_length()
    parts = []
    for begin in range(0, len(x), block or len(x)):
        part = x[begin : begin + (block or len(x))].astype(np.float64)
        n = len(part)
        y = np.fft.rfft(part, norm="ortho") / np.sqrt(unit)
        pairs = np.sqrt(2) * y[: (n + 1) // 2]
        pairs[0] = y[0].real + 1j * (y[-1].real if n % 2 == 0 else 0)
        parts.append(pairs.astype(np.complex128).view(np.float64))
    return np.concatenate(parts), unit


@pytest.mark.parametrize("block", [*BLOCKS, None])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distribution", ["normal", "mixed_scales", "one_hot", "constant"])
def test_against_float64(host, block, size, distribution):
    """The error, relative to the norm, is that of a few roundings a level; and Parseval: zero and Nyquist frequency
    count once, all others twice, tails and odd lengths included."""
    x = gradient(distribution, size, size)
    transform = Transform(host, size, block)
    spectrum, back = there_and_back(transform, x)
    expected, unit = exact(x, block)
    assert transform.unit == unit
    assert len(spectrum) == len(expected)
    norm, eps = np.linalg.norm(expected), 2.0**-24 * (2 + np.log2(unit))
    assert np.linalg.norm(spectrum - expected) <= eps * norm
    energy = np.square(x.astype(np.float64)).sum()
    assert unit * np.square(expected).sum() == pytest.approx(energy, rel=1e-12)
    assert unit * np.square(spectrum.astype(np.float64)).sum() == pytest.approx(energy, rel=1e-5)
    assert np.linalg.norm(back.astype(np.float64) - x) <= 2 * eps * np.linalg.norm(x.astype(np.float64))


@pytest.mark.parametrize("block", [16, 4096, None])
def test_one_inverse_for_the_sum(host, block):
    """Linear: the data of a sum of spectra is the sum of the data."""
    parts = [gradient("laplace", 10_001, rank) for rank in range(4)]
    transform = Transform(host, 10_001, block)
    total = sum(there_and_back(transform, x)[0] for x in parts)
    out = np.empty(10_001, np.float32)
    transform.inverse(total, 0.25, None, out)
    np.testing.assert_allclose(out, np.mean(parts, axis=0), atol=1e-5)


@pytest.mark.parametrize("block", [16, 4096, None])
@pytest.mark.parametrize("size", [16, 4096, 9999])
def test_large_numbers(host, block, size):
    """No number of a spectrum exceeds the largest element: nothing overflows on the way there."""
    for x in (np.full(size, 3.4e38, np.float32), gradient("huge", size, 3)):
        spectrum, _ = there_and_back(Transform(host, size, block), x)
        assert np.abs(spectrum).max() <= np.abs(x).max() * np.float32(1.0001)


def test_constants_do_not_depend_on_the_library():
    """No float64 constant is so near the middle of two float32 that a last bit of a sine could change its rounding."""
    for block in BLOCKS:
        for array in twiddle_factors(block):
            assert len(array) in (block, block // 2 + 2)
    k = np.arange(65_536 // 4 + 1)
    for exact_wave in (np.sin(np.pi / 2 * k / k[-1]), np.sqrt(0.5) * np.sin(np.pi / 2 * k / k[-1])):
        for direction in (-4, 4):
            nudged = exact_wave + direction * np.spacing(exact_wave)
            np.testing.assert_array_equal(nudged[1:-1].astype(np.float32), exact_wave[1:-1].astype(np.float32))


def test_refused(kernels):
    x = np.zeros(64, np.float32)
    out = np.zeros(64, np.float32)
    for block in (8, 48, 131_072):
        with pytest.raises(ValueError, match="block must be a power of two from 16 to 65"):
            kernels.forward(x, block, out)
    with pytest.raises(ValueError, match="64"):
        kernels.forward(x[:32], 32, out)
    with pytest.raises(ValueError, match="48 elements, not blocks of 32"):
        kernels.inverse(x[:48], 32, 1.0, None, out[:48])
    with pytest.raises(ValueError, match="minuend has 32 elements"):
        kernels.inverse(x, 32, 1.0, x[:32], out)
    if kernels is not REFERENCE:
        with pytest.raises(ValueError, match="out overlaps x"):
            kernels.forward(x, 32, x)
        with pytest.raises(ValueError, match="out overlaps spectrum"):
            kernels.inverse(x, 32, 1.0, None, x)
