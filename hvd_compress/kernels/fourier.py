"""The real Fourier transform of a bucket: an orthogonal change of basis, up to one common factor.

Spectra have as many numbers as the data (one more where a length is odd), in *pairs*: pair k of a block of n elements
is the real and the imaginary part of frequency k, and pair 0 is the zero frequency and the Nyquist frequency, which
are real (n odd: there is no Nyquist frequency, and a zero takes its place). The other frequencies stand for themselves
and for their conjugates, which are not there: they are larger by the square root of 2, so that every number has
the same weight in the energy::

    sum(x**2) == unit * sum(spectrum**2)         # Parseval; unit = block, or for one transform the next power of 2

whatever block the number belongs to. No number of a spectrum exceeds the largest element in magnitude.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from hvd_compress.kernels.protocol import Float32, Kernels, Sections, UInt8, UInt32
from hvd_compress.validation import require_int

MIN_BLOCK, MAX_BLOCK = 16, 65_536
"""Blocks that the kernels transform: powers of two from ... to ..."""


@functools.cache
def twiddle_factors(block: int) -> tuple[Float32, Float32]:
    """Return the kernels' constants, complex numbers as pairs of float32, with ``n = block / 2``: ``exp(-2 pi i k /
    n)`` for k < n; and ``-i sqrt(1/2) exp(-2 pi i k / block)`` for k <= n / 2."""
    wave = np.sin(np.pi / 2 * np.arange(block // 4 + 1) / (block // 4))
    wave = np.concatenate([wave, wave[-2::-1]])
    sine = np.concatenate([wave, -wave[1:-1]])  # of 2 pi k / block
    roots = np.roll(sine, -(block // 4)) - 1j * sine
    first, second = roots[::2], -1j * np.sqrt(0.5) * roots[: block // 4 + 1]
    arrays = tuple(np.ascontiguousarray(z.astype(np.complex64)).view(np.float32) for z in (first, second))
    for array in arrays:
        array.setflags(write=False)
    return arrays[0], arrays[1]


def without_denormals(x: Float32) -> Float32:
    """Return ``x`` with zeros for the numbers below 2**-126, with which processors are slow."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def check_block(block: int | None) -> None:
    """Raise TypeError or ValueError unless the kernels can transform blocks of this length, or None."""
    if block is None:
        return
    require_int("block", block, 1)
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & (block - 1):
        raise ValueError(f"block must be a power of two from {MIN_BLOCK} to {MAX_BLOCK}, or None, got {block!r}")


class Transform:
    """The transform of buckets of ``size`` elements in blocks, or (``block=None``) as one.

    What is left behind the last whole block is transformed at its own length. On the host whole blocks are the same on
    every machine; the rest is SciPy's, and the same wherever its version and the processor are. On a device both are
    PyTorch's, and the same wherever its version and the device are.
    """

    def __init__(self, kernels: Kernels, size: int, block: int | None) -> None:
        self._kernels = kernels
        self._block = block or MIN_BLOCK
        self._whole = size - size % block if block else 0
        self._rest = size - self._whole
        self.unit = block or 1 << max(size - 1, 0).bit_length()
        self.pairs = self._whole // 2 + (self._rest + 1) // 2

    def forward(self, x: Float32, out: Float32) -> None:
        """Write the spectrum of the finite ``x`` to ``out`` (float32, ``2 * pairs``)."""
        w = self._whole
        self._kernels.forward(x[:w], self._block, out[:w])
        if self._rest:
            self._kernels.forward_one(x[w:], self.unit, out[w:])

    def inverse(self, spectrum: Float32, scale: float, minuend: Float32 | None, out: Float32) -> None:
        """Write the data of ``spectrum`` times ``scale``, or what that leaves of ``minuend`` (may be ``out``)."""
        w = self._whole
        self._kernels.inverse(spectrum[:w], self._block, scale, _part(minuend, slice(w)), out[:w])
        self._inverse_rest(spectrum[w:], scale, _part(minuend, slice(w, None)), out[w:])

    def synthesize(
        self,
        payloads: UInt8,
        sections: Sections,
        entries: UInt32,
        tables: Sequence[Float32],
        scale: float,
        minuend: Float32 | None,
        out: Float32,
    ) -> None:
        """Do as ``inverse`` with the sum of the spectra in ``payloads``; see ``SpectrumKernels.synthesize``."""
        w = self._whole
        rest = self._kernels.empty(2 * self.pairs - w)
        self._kernels.synthesize(
            payloads, sections, entries, tables, self._block, scale, _part(minuend, slice(w)), out[:w], rest
        )
        self._inverse_rest(rest, scale, _part(minuend, slice(w, None)), out[w:])

    def _inverse_rest(self, spectrum: Float32, scale: float, minuend: Float32 | None, out: Float32) -> None:
        if self._rest:
            self._kernels.inverse_one(spectrum, self.unit, scale, minuend, out)


def _part(array: Float32 | None, part: slice) -> Float32 | None:
    return None if array is None else array[part]
