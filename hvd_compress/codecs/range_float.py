"""Range-based floats: N-bit numbers that spend their codes on the range that is really there.

Wang et al., HPDC 2020, arXiv 1811.08596. A float32 without its sign is an integer that grows with the
magnitude; shifted right by ``23 - m`` it enumerates the magnitudes with m mantissa bits. A format of N bits and m
mantissa bits for the range [low, high], low <= 0 <= high:

- code 0 is zero, exactly;
- the positive codes 1 ... P mean ``eps``, the next magnitude with m mantissa bits, and so on; the last means ``high``,
  exactly;
- the negative codes P + 1 ... P + Q mean ``-eps`` and so on; the last means ``low``, exactly;
- ``eps`` is the smallest magnitude with m mantissa bits for which P + Q <= 2^N - 1. An end of the range that is not
  zero has one code at least: of two ends very different in size the smaller, below eps, keeps one code, for itself.

The values are thus as dense as floats are, from eps on; between 0 and eps there is none. A number is rounded to one of
the two values next to it: to the nearer (halves away from zero), so that it is off by at most half the distance
between the two; or at random, with the expectation of the number itself (up to 2^-23 of that distance). Numbers beyond
the range become its end.

In a payload a format takes 16 bytes: uint8 N, uint8 m, two zero bytes, uint32 base (eps in units of the code), float32
low, float32 high.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hvd_compress.kernels import CorruptPayload, Float32, Kernels, RangeCode, UInt8, packed_bytes
from hvd_compress.validation import require_int

NBYTES = 16
LEAST_BITS, MOST_BITS = 4, 16
SAMPLE = 1024
"""Values by which the number of mantissa bits is chosen, at most (about twice as many at worst)."""

_LAYOUT = struct.Struct("<BBHIff")


@dataclass(frozen=True)
class RangeFloat:
    """A format: ``bits`` (N), ``mantissa`` (m) and a range whose ends are float32 numbers.

    >>> RangeFloat(4, 1, 0.0, 1.0).table[:8].tolist(), RangeFloat(4, 1, -1.0, 1.0).table[:8].tolist()
    ([0.0, 0.0078125, 0.01171875, 0.015625, 0.0234375, 0.03125, 0.046875, 0.0625],
     [0.0, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0])

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    bits: int
    mantissa: int
    low: float
    high: float

    def __post_init__(self) -> None:
        check_widths(self.bits, self.mantissa)
        for name in ("low", "high"):
            with np.errstate(over="ignore"):
                object.__setattr__(self, name, float(np.float32(getattr(self, name))) + 0.0)  # no -0.0
        if not -np.inf < self.low <= 0 <= self.high < np.inf:
            raise ValueError(f"the range must be finite and have zero in it, got low={self.low!r}, high={self.high!r}")

    @cached_property
    def code(self) -> RangeCode:
        """Return what the kernels need to know; this solves for eps."""
        tops = [self._steps(end) for end in (self.high, -self.low)]

        def counts(base: int) -> list[int]:
            return [max(1, top - base + 1) if top else 0 for top in tops]

        below, base = 0, max(1, *tops)  # too small, and large enough
        while base - below > 1:
            middle = (below + base) // 2
            below, base = (below, middle) if sum(counts(middle)) < 1 << self.bits else (middle, base)
        positives, negatives = counts(base)
        return RangeCode(self.bits, self.mantissa, base, positives, negatives, self.low, self.high)

    @property
    def eps(self) -> float:
        """Return the smallest magnitude with a code, not counting an end of the range below it; 0.0 for [0, 0]."""
        return min(float(self._grid(self.code.base)), max(self.high, -self.low))

    @cached_property
    def table(self) -> Float32:
        """Return the value of every code, float32."""
        code = self.code
        values = [np.zeros(1, np.float32)]
        for count, end, sign in ((code.positives, self.high, 1), (code.negatives, self.low, -1)):
            if count:
                values += [
                    np.float32(sign) * self._grid(code.base + np.arange(count - 1)), np.array([end], np.float32)
                ]  # fmt: skip
        return np.concatenate(values)

    def encode(self, kernels: Kernels, values: Float32, out: UInt8, key: int | None = None) -> None:
        """Write the codes of the finite ``values`` to ``out`` (``packed_bytes`` of them): to nearest, or, with a key
        for the random numbers, at random."""
        kernels.range_encode(values, self.code, key, out)

    def decode(self, kernels: Kernels, packed: UInt8, out: Float32) -> Float32:
        """Decode exactly what was encoded, as many values as ``out`` has room for. Return ``out``.

        Raises:
            CorruptPayload: a code has no value; ``out`` is then untouched.
        """
        kernels.range_decode(packed, self.bits, self.table, out)
        return out

    def write(self, out: UInt8) -> None:
        """Write the format's 16 bytes."""
        code = self.code
        out[:NBYTES] = np.frombuffer(
            _LAYOUT.pack(self.bits, self.mantissa, 0, code.base, self.low, self.high), np.uint8
        )

    @staticmethod
    def read(data: UInt8, bits: int) -> RangeFloat:
        """Return the format in the first 16 bytes of ``data``.

        Raises:
            CorruptPayload: it is none, or its numbers contradict each other, or it has not these ``bits``.
        """
        found, mantissa, padding, base, low, high = _LAYOUT.unpack(data[:NBYTES].tobytes())
        try:
            if found != bits or padding:
                raise ValueError(f"it has {found} bits, expected {bits}")
            result = RangeFloat(bits, mantissa, low, high)
            if base != result.code.base:
                raise ValueError(f"its base is {base}, expected {result.code.base}")
        except ValueError as error:
            raise CorruptPayload(f"not a range-based float: {error}") from error
        return result

    def _steps(self, end: float) -> int:
        """Return how many steps the enumeration takes from zero up to ``end``, the last one rounded up."""
        shift = 23 - self.mantissa
        return int(np.float32(end).view(np.uint32)) + (1 << shift) - 1 >> shift if end > 0 else 0

    def _grid(self, steps: ArrayLike) -> Float32:
        return (np.asarray(steps, np.uint32) << np.uint32(23 - self.mantissa)).view(np.float32)


def fit(kernels: Kernels, values: Float32, bits: int, mantissa: int | None, low: float, high: float) -> RangeFloat:
    """Return the format of ``bits`` bits for finite ``values`` in [``low``, ``high``] (widened to have zero in it).

    ``mantissa=None`` takes the number of mantissa bits that makes the smallest sum of squared errors on a sample of
    the values, evenly spaced; of equal ones the smallest.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if mantissa is not None:
        return RangeFloat(bits, mantissa, low, high)
    sample = np.ascontiguousarray(kernels.on_host(values[:: max(1, len(values) // SAMPLE)]))
    wide = sample.astype(np.float64)
    packed, decoded = np.empty(packed_bytes(len(sample), bits), np.uint8), np.empty(len(sample), np.float32)

    def error(candidate: RangeFloat) -> float:
        candidate.encode(kernels, sample, packed)
        difference = wide - candidate.decode(kernels, packed, decoded)
        return float(difference @ difference)

    return min((RangeFloat(bits, m, low, high) for m in range(bits + 1)), key=error)


def check_widths(bits: int, mantissa: int | None) -> None:
    """Raise TypeError or ValueError unless there are range-based floats of so many bits and mantissa bits."""
    require_int("bits", bits, LEAST_BITS, MOST_BITS)
    if mantissa is not None:
        require_int("mantissa", mantissa, 0)
        if mantissa > bits:
            raise ValueError(
                f"mantissa must be from 0 to bits={bits} (with more, the codes do not even span a factor of two), "
                f"got {mantissa!r}"
            )
