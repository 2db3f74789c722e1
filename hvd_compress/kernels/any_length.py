"""The transform of one block of any length, by SciPy: what the kernel sets for arrays on the host have in common."""

from __future__ import annotations

import numpy as np

from hvd_compress.kernels.fourier import without_denormals
from hvd_compress.kernels.protocol import Float32


class AnyLengthTransform:
    """``forward_one`` and ``inverse_one`` of ``SpectrumKernels``."""

    def forward_one(self, x: Float32, unit: int, out: Float32) -> None:
        from scipy import fft

        n = len(x)
        y = fft.rfft(x * np.float32(1 / unit), workers=1).view(np.float32)
        np.multiply(y[2 : len(out)], np.float32(np.sqrt(2 * unit / n)), out=out[2:])
        out[:2] = y[0], y[-2] if n % 2 == 0 else 0
        out[:2] *= np.float32(np.sqrt(unit / n))

    def inverse_one(self, spectrum: Float32, unit: int, scale: float, minuend: Float32 | None, out: Float32) -> None:
        from scipy import fft

        n = len(out)
        y = np.zeros(2 * (n // 2 + 1), np.float32)
        y[2 : len(spectrum)] = spectrum[2:]
        y *= np.float32(np.sqrt(0.5))
        y[0] = spectrum[0]
        if n % 2 == 0:
            y[-2:] = spectrum[1], 0
        with np.errstate(over="ignore", invalid="ignore"):  # as the compiled kernels: it shows later
            x = fft.irfft(y.view(np.complex64), n, norm="forward", workers=1)
            x *= np.float32(np.sqrt(unit / n))
            x *= np.float32(scale)
            out[:] = x if minuend is None else without_denormals(minuend - x)
