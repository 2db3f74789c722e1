"""Sparsification in the frequency domain with a range-based float (Wang et al., HPDC 2020, arXiv 1811.08596)."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import ClassVar, Literal

import numpy as np

from hvd_compress import schedules
from hvd_compress.algorithms.selection import sample_size, threshold_for
from hvd_compress.codecs.range_float import check_widths, fit
from hvd_compress.codecs.spectrum import SpectrumFormat
from hvd_compress.compressor import compressor_dataclass
from hvd_compress.exchange import AllGather, Bucket, Exchange
from hvd_compress.kernels import Float32, UInt32, sample_lines, workspace
from hvd_compress.kernels.fourier import Transform, check_block
from hvd_compress.sparsifier import Selective
from hvd_compress.validation import require_choice

ROUNDINGS = ("nearest", "stochastic")
SAFE_NORM = 2.0**124
"""A memory of a smaller Euclidean norm stays finite: its data and what is left of it do not exceed twice the norm, and
rounding to nearest leaves no more of a frequency than there was."""


@compressor_dataclass
class FFT(Selective):
    """Send the strongest frequencies of the gradient, their real and imaginary parts in a few bits each.

    1. Memory + gradient is transformed: in blocks, or as a whole (blocks are our own step beyond the
       paper). Frequencies are pairs of numbers, all of the same weight in the energy (``kernels.fourier``).
    2. A sample of the energies, ``re^2 + im^2``, gives a threshold, one pass takes the pairs above it, and of these
       the ``ratio`` with the most energy stay: exactly the largest, without a square root or a sort.
    3. The kept numbers become range-based floats of ``bits`` bits, for the range that they have.
    4. Which ones and what they are is all-gathered; the spectra are summed, and one inverse transform, whatever the
       number of workers, makes the mean of them.
    5. The memory keeps what the receivers do not get: memory + gradient less the inverse of the worker's own payload;
       with stochastic rounding, which has no bias to make good, all frequencies that were not sent.

    Beside the memory this takes a spectrum, which is as large as the gradient, for the largest bucket and all others.

    Args:
        ratio: fraction of the frequencies to send, 1 - theta of the paper: a number in (0, 1] or a schedule
            (``schedules.DiminishingTheta`` is the paper's, with which convergence is guaranteed).
        bits: of a number on the wire, 4 to 16.
        block: elements that are transformed together: a power of two from 16 to 65,536; None: the whole bucket.
        mantissa: bits of it that are mantissa, up to ``bits``; None: those that make the smallest error on a sample.
        rounding: ``"nearest"``, or ``"stochastic"``: unbiased.

    Rounding to nearest leaves no more of a number than there was, so that the memory's norm does not grow by it. Random
    rounding may leave many times as much of a small one, and a memory that kept that would amplify it.

    Tuning: the defaults send one element's worth of bytes in 25; try ``ratio=0.05, bits=6`` next. Stochastic rounding
    is for ``error_feedback=False``: with a memory nothing is lost, and rounding to nearest errs less.

    >>> FFT(0.05, block=None)
    FFT(ratio=0.05, block=None)
    """

    name: ClassVar[str] = "fft"
    runs_on_devices: ClassVar[bool] = True
    decoding_arrays: ClassVar[int] = 3
    """The sum of the spectra, and two that a transform needs."""
    rounds_by_device: ClassVar[bool] = True
    schedule = (AllGather,)

    ratio: float | schedules.Schedule = 0.1
    _: KW_ONLY
    bits: int = 8
    block: int | None = 4096
    mantissa: int | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.bits, self.mantissa)
        check_block(self.block)
        require_choice("rounding", self.rounding, ROUNDINGS)

    def fingerprint(self) -> str:
        import scipy  # which transforms what no block holds: a whole bucket, or what is left behind its last block

        return f"; SciPy {scipy.__version__}"

    def exchange(self, bucket: Bucket) -> Exchange:
        kernels = bucket.kernels
        transform = Transform(kernels, bucket.size, self.block)
        _, k = self.target(bucket, transform.pairs)
        layout = SpectrumFormat(bucket.size, transform.pairs, self.block, -(-k // 8) * 8, self.bits)
        spectrum = bucket.device_scratch("spectrum", 2 * transform.pairs, np.float32)
        values = bucket.values
        if bucket.memory.finite:
            transform.forward(values, spectrum)
        else:
            spectrum[:] = 0  # without a memory the values are those of the gradient; the step is abandoned anyway
        indices = strongest(bucket, spectrum, k)
        kept = bucket.device_scratch("kept", 2 * len(indices), np.float32)
        low, high = kernels.gather_pairs(spectrum, indices, kept)
        number = fit(kernels, kept, self.bits, self.mantissa, low, high)
        payload = bucket.scratch("payload", layout.nbytes, np.uint8)
        key = bucket.private_key(1) if self.rounding == "stochastic" else None
        layout.encode(kernels, indices, kept, number, key, payload)
        # no element of a block's data exceeds, in magnitude, unit times the largest number of its spectrum, and neither
        # does the Euclidean norm of the block: below this, nothing can overflow
        extreme = max(high, -low) * transform.unit >= SAFE_NORM
        if self.error_feedback and key is not None:  # random rounding is no contraction: fed back, it could grow
            numbers: UInt32 = (2 * indices[:, None] + np.arange(2, dtype=np.uint32)).reshape(-1).astype(np.uint32)
            kernels.restore(spectrum, numbers, np.zeros(len(numbers), np.float32))
            transform.inverse(spectrum, 1.0, None, values)
        elif self.error_feedback or extreme:
            layout.decode(transform, payload[None], 1.0, values, values)
        limit = SAFE_NORM if self.error_feedback else np.inf
        if extreme and not kernels.norm([values], self.error_feedback) < limit:
            bucket.memory.finite = False
        bucket.target, bucket.sent = k, len(indices)
        gathered = yield AllGather(payload)
        return layout.decode(transform, gathered, 1 / bucket.workers, None, bucket.decoded)


def strongest(bucket: Bucket, spectrum: Float32, k: int) -> UInt32:
    """Return the ascending indices (a workspace) of the ``k`` pairs of most energy, of those that have any."""
    kernels, pairs = bucket.kernels, len(spectrum) // 2
    lines, room = sample_lines(2 * sample_size(pairs, k / pairs, exact=True), len(spectrum))
    sample = bucket.scratch("sample", room, np.float32)
    moments = kernels.sample(None, [spectrum], bucket.private_key(), lines, sample)
    scale = 1.0
    if not 2.0**-40 < moments.largest < 2.0**40:  # squares must neither overflow nor vanish
        scale = 2.0 ** -min(max(math.frexp(moments.largest)[1], -120), 126)
    threshold = 0.0
    if moments.count:
        squares = np.square(sample[: moments.count] * np.float32(scale))
        energies = squares[::2] + squares[1::2]
        threshold = threshold_for(kernels, energies, k, pairs)
    indices = bucket.scratch("indices", workspace(k), np.uint32)
    strengths = bucket.scratch("selected", workspace(k), np.float32)
    selection = kernels.select_pairs(spectrum, scale, threshold, k, indices, strengths)
    if selection.kept < k and threshold > 0:  # the sample was too optimistic
        selection = kernels.select_pairs(spectrum, scale, 0.0, k, indices, strengths)
    return indices[: selection.kept]
