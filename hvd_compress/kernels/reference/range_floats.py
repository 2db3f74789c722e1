"""Range-based floats in NumPy: the specification of the kernels for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.hashing import hash32
from hvd_compress.kernels.protocol import CorruptPayload, Float32, RangeCode, UInt8, check_code, packed_bytes


def range_codes(x: Float32, code: RangeCode, key: int | None) -> NDArray[np.int64]:
    """Return the code of every element."""
    negative = np.signbit(x)
    magnitude = (x.view(np.uint32) & np.uint32(0x7FFFFFFF)).astype(np.int64)
    ends = np.abs(np.array([code.high, code.low], np.float32)).view(np.uint32).astype(np.int64)
    count = np.where(negative, code.negatives, code.positives)
    end = np.where(negative, ends[1], ends[0])
    shift = 23 - code.mantissa
    cell = np.minimum(np.maximum((magnitude >> shift) - code.base + 1, 0), count - 1)
    lower = np.where(cell <= 0, 0, (code.base + cell - 1) << shift)
    upper = np.where(cell == count - 1, end, (code.base + cell) << shift)
    value, lo, hi = (bits.astype(np.uint32).view(np.float32) for bits in (magnitude, lower, upper))
    with np.errstate(divide="ignore", invalid="ignore"):
        if key is None:
            up = value - lo >= hi - value
        else:
            draws = hash32(key, np.arange(len(x), dtype=np.uint64)) >> np.uint64(8)
            up = (value - lo) / (hi - lo) > draws.astype(np.float32) * np.float32(2.0**-24)
    codes = cell + (up | (magnitude >= end))
    return np.where(negative & (codes > 0), codes + code.positives, codes)


def unpack(packed: UInt8, count: int, bits: int) -> NDArray[np.int64]:
    """Return so many codes."""
    planes = np.unpackbits(packed[: packed_bytes(count, bits)], count=count * bits, bitorder="little")
    codes: NDArray[np.int64] = planes.reshape(-1, bits).astype(np.int64) @ (1 << np.arange(bits))
    return codes


class RangeFloatReference:
    """``SpectrumKernels`` for range-based floats."""

    def range_encode(self, x: Float32, code: RangeCode, key: int | None, out: UInt8) -> None:
        check_code(code)
        if len(out) != packed_bytes(len(x), code.bits):
            raise ValueError(f"out has {len(out)} bytes, not {packed_bytes(len(x), code.bits)}")
        codes = range_codes(x, code, key)
        out[:] = np.packbits((codes[:, None] >> np.arange(code.bits)) & 1, bitorder="little")

    def range_decode(self, packed: UInt8, bits: int, table: Float32, out: Float32) -> None:
        if not 4 <= bits <= 16:
            raise ValueError(f"bits must be from 4 to 16, not {bits}")
        if len(packed) != packed_bytes(len(out), bits):
            raise ValueError(f"packed has {len(packed)} bytes, not {packed_bytes(len(out), bits)}")
        codes = unpack(packed, len(out), bits)
        if (codes >= len(table)).any():
            raise CorruptPayload(f"a code is {codes.max()}, and there are {len(table)}")
        out[:] = table[codes]
