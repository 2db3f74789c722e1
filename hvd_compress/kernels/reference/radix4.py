"""The Fourier transform of blocks in NumPy: the specification of the kernels for it.

``n = block / 2`` complex numbers ``z[j] = x[2j] + i x[2j+1]`` are transformed by radix 4, decimation in frequency, with
a last step of radix 2 if n is no power of 4; then the spectrum of x is split from that of z. The inverse is the same
backwards. All arithmetic is float32, every operation rounded, in the order that is written here.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.fourier import check_block, twiddle_factors, without_denormals
from hvd_compress.kernels.protocol import Float32

Complex64 = NDArray[np.complex64]
HALF = np.float32(np.sqrt(0.5))


@functools.cache
def order(n: int) -> NDArray[np.intp]:
    """Return where decimation in frequency leaves frequency 0, 1, 2, ..."""
    if n <= 2:
        return np.arange(n)
    k = np.arange(n)
    places: NDArray[np.intp] = k % 4 * (n // 4) + order(n // 4)[k // 4]
    return places


def times(re: Float32, im: Float32, wre: Float32, wim: Float32) -> tuple[Float32, Float32]:
    """Return a product of complex numbers; the second is a constant."""
    return re * wre - im * wim, im * wre + re * wim


def radix4(re: Float32, im: Float32, roots: Complex64, *, inverse: bool) -> None:
    """Apply all butterflies to arrays of shape ``(blocks, parts, 4, length)``, in place."""
    powers = roots[np.arange(4)[:, None] * np.arange(re.shape[3]) * re.shape[1]]
    wre, wim = powers.real, -powers.imag if inverse else powers.imag
    rest = np.s_[:, :, 1:, 1:]  # the others' constants are 1
    if inverse:
        re[rest], im[rest] = times(re[rest], im[rest], wre[1:, 1:], wim[1:, 1:])
    (a, b, c, d), (e, f, g, h) = (np.moveaxis(part, 2, 0) for part in (re.copy(), im.copy()))
    s, t, u, v = a + c, a - c, b + d, b - d
    w, x, y, z = e + g, e - g, f + h, f - h
    re[:, :, 0], im[:, :, 0], re[:, :, 2], im[:, :, 2] = s + u, w + y, s - u, w - y
    one, three = (3, 1) if inverse else (1, 3)
    re[:, :, one], im[:, :, one], re[:, :, three], im[:, :, three] = t + z, x - v, t - z, x + v
    if not inverse:
        re[rest], im[rest] = times(re[rest], im[rest], wre[1:, 1:], wim[1:, 1:])


def complex_transform(re: Float32, im: Float32, roots: Complex64, *, inverse: bool) -> None:
    """Transform the rows, in place; spectra are in ``order``."""
    blocks, n = re.shape
    parts = [4**i for i in range(n.bit_length() // 2) if 4 ** (i + 1) <= n]
    if n.bit_length() % 2 == 0:  # n is twice a power of 4
        parts.append(n // 2)
    for count in reversed(parts) if inverse else parts:
        radix = min(4, n // count)
        shape = blocks, count, radix, n // count // radix
        if radix == 4:
            radix4(re.reshape(shape), im.reshape(shape), roots, inverse=inverse)
        else:
            for part in (re.reshape(shape), im.reshape(shape)):
                part[:, :, 0], part[:, :, 1] = part[:, :, 0] + part[:, :, 1], part[:, :, 0] - part[:, :, 1]


def split(re: Float32, im: Float32, factors: Complex64, *, inverse: bool) -> None:
    """Turn the spectrum of complex numbers into that of real ones, or back, in place."""
    n = re.shape[1]
    k = np.arange(1, n // 2 + 1)
    wre, wim = factors.real[1:], -factors.imag[1:] if inverse else factors.imag[1:]
    sre, dim = re[:, k] + re[:, n - k], im[:, k] + im[:, n - k]
    dre, sim = re[:, k] - re[:, n - k], im[:, k] - im[:, n - k]
    pre, pim = times(dre, dim, wre, wim)
    sre, sim = HALF * sre, HALF * sim
    re[:, n - k], im[:, n - k] = sre - pre, pim - sim
    re[:, k], im[:, k] = sre + pre, sim + pim
    re[:, 0], im[:, 0] = re[:, 0] + im[:, 0], re[:, 0] - im[:, 0]


def forward(x: Float32, block: int, out: Float32) -> None:
    """Write the spectra of the blocks of ``x``."""
    _check(x, block, out)
    roots, factors = (table.view(np.complex64) for table in twiddle_factors(block))
    rows = x.reshape(-1, block) * np.float32(1 / block)
    re, im = rows[:, ::2].copy(), rows[:, 1::2].copy()
    complex_transform(re, im, roots, inverse=False)
    re, im = re[:, order(block // 2)], im[:, order(block // 2)]
    split(re, im, factors, inverse=False)
    out.reshape(-1, block)[:, ::2], out.reshape(-1, block)[:, 1::2] = re, im


def inverse(spectrum: Float32, block: int, scale: float, minuend: Float32 | None, out: Float32) -> None:
    """Write the data of the spectra, times ``scale``, or what that leaves of ``minuend``."""
    _check(spectrum, block, out)
    if minuend is not None and len(minuend) != len(out):
        raise ValueError(f"minuend has {len(minuend)} elements, not {len(out)}")
    roots, factors = (table.view(np.complex64) for table in twiddle_factors(block))
    rows = spectrum.reshape(-1, block)
    with np.errstate(over="ignore", invalid="ignore"):
        re, im = rows[:, ::2].copy(), rows[:, 1::2].copy()
        split(re, im, factors, inverse=True)
        re[:, order(block // 2)], im[:, order(block // 2)] = re.copy(), im.copy()
        complex_transform(re, im, roots, inverse=True)
        x = np.stack([re, im], axis=2).reshape(-1) * np.float32(scale)
        out[:] = x if minuend is None else without_denormals(minuend - x)


def _check(x: Float32, block: int, out: Float32) -> None:
    check_block(block)
    if len(x) != len(out) or len(x) % block:
        raise ValueError(f"x and out have {len(x)} and {len(out)} elements, not blocks of {block}")


class TransformReference:
    """``SpectrumKernels`` for the transform."""

    forward = staticmethod(forward)
    inverse = staticmethod(inverse)
