"""The kernels in C++: what runs. ``hvd_compress.kernels.protocol`` says what each function does.

The extension holds every kernel for AVX-512, for AVX2 and for any CPU, and takes the best that this machine has;
``HVD_COMPRESS_ISA=avx512|avx2|portable`` forces one. All of them, and the reference, give identical bytes. The GIL is
released while a kernel runs, and no kernel starts threads. Arguments are checked before anything is written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np

from hvd_compress.kernels.any_length import AnyLengthTransform
from hvd_compress.kernels.fourier import twiddle_factors
from hvd_compress.kernels.host_arrays import HostArrays
from hvd_compress.kernels.protocol import (
    LANES,
    LOG_ROWS,
    CorruptPayload,
    Float32,
    Int64,
    Kernels,
    Moments,
    Pieces,
    RangeCode,
    SectionMoments,
    Sections,
    Selection,
    UInt8,
    UInt32,
    Words,
    join_logarithms,
)

try:
    from hvd_compress.kernels import _host
except ImportError as error:
    raise ImportError(
        f"the C++ kernels (hvd_compress.kernels._host) cannot be loaded: {error}. Reinstall hvd-compress (`pip install "
        "--force-reinstall --no-deps hvd-compress`, or `pip install -e .` in a checkout; this needs a C++17 compiler), "
        "or set HVD_COMPRESS_KERNELS=reference to run the slow NumPy kernels instead."
    ) from error

log = logging.getLogger(__name__)


def isa() -> str:
    """Return the instruction set in use: ``"avx512"``, ``"avx2"`` or ``"portable"``."""
    return _host.isa()


def available() -> list[str]:
    """Return the instruction sets that this build and this machine have, the best first."""
    return _host.available()


def use(name: str) -> None:
    """Use an instruction set from now on, in the whole process. Raise ValueError if it is not available."""
    _host.use(name)


class Host(HostArrays, AnyLengthTransform):
    """``Kernels`` in C++; functions that take and return what the extension's do are the extension's."""

    name = "host"

    add_momentum = staticmethod(_host.add_momentum)
    kth_largest = staticmethod(_host.kth_largest)
    restore = staticmethod(_host.restore)
    take = staticmethod(_host.take)
    pack = staticmethod(_host.pack)
    narrow = staticmethod(_host.narrow)
    accumulate_dense = staticmethod(_host.accumulate_dense)
    norm = staticmethod(_host.norm)
    dequantize = staticmethod(_host.dequantize)
    mask = staticmethod(_host.mask)
    accumulate_ternary = staticmethod(_host.accumulate_ternary)
    gather_pairs = staticmethod(_host.gather_pairs)
    mark = staticmethod(_host.mark)

    def empty(self, n: int) -> Float32:
        return np.frombuffer(memoryview(_host.Block(4 * n)), np.float32)

    def add(self, memory: Float32 | None, pieces: Pieces, out: Float32) -> bool:
        return Moments(*_host.add(memory, pieces, out)).finite

    def sample(self, memory: Float32 | None, pieces: Pieces, key: int, lines: int, out: Float32) -> Moments:
        return Moments(*_host.sample(memory, pieces, key & 0xFFFFFFFFFFFFFFFF, lines, out))

    def exceedances(self, x: Float32, threshold: float, out: Float32) -> Moments:
        return Moments(*_host.exceedances(x, threshold, out))

    def log_sum(self, x: Float32) -> tuple[int, float]:
        products = np.empty(-(-len(x) // (LOG_ROWS * LANES)) * LANES)
        count, exponents = _host.log_sum(x, products)
        return count, join_logarithms(exponents, products.reshape(-1, LANES))

    def select(
        self,
        memory: Float32 | None,
        pieces: Pieces,
        out: Float32,
        threshold: float,
        capacity: int,
        indices: UInt32,
        values: Float32,
    ) -> Selection:
        return Selection(*_host.select(memory, pieces, out, threshold, capacity, indices, values))

    def accumulate(
        self,
        payloads: UInt8,
        counts_at: int,
        positions_at: int,
        values_at: int,
        count_bytes: int,
        capacity: int,
        wire: int,
        entries: UInt32,
        scale: float,
        out: Float32,
    ) -> None:
        corrupt = _host.accumulate(
            payloads, counts_at, positions_at, values_at, count_bytes, capacity, wire, entries, scale, out
        )
        if corrupt >= 0:
            raise CorruptPayload(
                f"payload {corrupt} of {len(payloads)}: its {entries[corrupt]} entries (capacity {capacity}), block "
                "counts and positions contradict each other, or a value is not finite"
            )

    def quantize(
        self,
        pieces: Pieces,
        scales: Float32,
        planes: Int64 | None,
        workers: int,
        levels: int,
        width: int,
        key: int,
        words: Words,
    ) -> None:
        _host.quantize(pieces, scales, planes, workers, levels, width, key & 0xFFFFFFFFFFFFFFFF, words)

    def permutation(self, key: int, start: int, size: int, out: UInt32) -> None:
        _host.permutation(key & 0xFFFFFFFFFFFFFFFF, start, size, out)

    def section_moments(self, x: Float32, ends: Int64) -> SectionMoments:
        moments = SectionMoments(np.empty(len(ends), np.float32), np.empty(len(ends)), np.empty(len(ends)))
        _host.section_moments(x, ends, *moments)
        return moments

    def ternarize(self, x: Float32, ends: Int64, scales: Float32, key: int, codes: UInt8) -> None:
        _host.ternarize(x, ends, scales, key & 0xFFFFFFFFFFFFFFFF, codes)

    def range_encode(self, x: Float32, code: RangeCode, key: int | None, out: UInt8) -> None:
        _host.range_encode(x, code, key is not None, (key or 0) & 0xFFFFFFFFFFFFFFFF, out)

    def range_decode(self, packed: UInt8, bits: int, table: Float32, out: Float32) -> None:
        if not _host.range_decode(packed, bits, table, out):
            raise CorruptPayload(f"a code of {bits} bits is beyond the {len(table)} that have a value")

    def forward(self, x: Float32, block: int, out: Float32) -> None:
        _host.forward(x, block, *twiddle_factors(block), out)

    def inverse(self, spectrum: Float32, block: int, scale: float, minuend: Float32 | None, out: Float32) -> None:
        _host.inverse(spectrum, block, *twiddle_factors(block), scale, minuend, out)

    def select_pairs(
        self, pairs: Float32, scale: float, threshold: float, capacity: int, indices: UInt32, energies: Float32
    ) -> Selection:
        return Selection(*_host.select_pairs(pairs, scale, threshold, capacity, indices, energies))

    def synthesize(
        self,
        payloads: UInt8,
        sections: Sections,
        entries: UInt32,
        tables: Sequence[Float32],
        block: int,
        scale: float,
        minuend: Float32 | None,
        out: Float32,
        rest: Float32,
    ) -> None:
        constants = twiddle_factors(block)
        corrupt = _host.synthesize(payloads, sections, entries, tables, block, *constants, scale, minuend, out, rest)
        if corrupt >= 0:
            raise CorruptPayload(
                f"payload {corrupt} of {len(payloads)}: its {entries[corrupt]} entries contradict its places or codes; "
                f"{sections}"
            )


if name := os.environ.get("HVD_COMPRESS_ISA"):
    use(name)
log.debug("C++ kernels with %s; available: %s", isa(), ", ".join(available()))

KERNELS: Kernels = Host()
