"""The specification of the kernels: what every kernel set provides, defined to the last bit.

``definitions`` holds the types and constants, ``sparsification``, ``quantization``, ``spectra`` and ``arrays`` a
protocol each, and ``Kernels`` is all of them together. ``hvd_compress.kernels.reference`` is the same specification in
NumPy.
"""

from typing import Protocol

from hvd_compress.kernels.protocol.arrays import ArrayOperations
from hvd_compress.kernels.protocol.definitions import (
    BLOCK,
    LANES,
    WIRES,
    CorruptPayload,
    Float32,
    Int64,
    Moments,
    Pieces,
    SectionMoments,
    Selection,
    UInt8,
    UInt16,
    UInt32,
    Words,
    fold_lanes,
    sample_lines,
    widen,
    workspace,
)
from hvd_compress.kernels.protocol.quantization import (
    FEISTEL_ROUNDS,
    MAX_LEVELS,
    MAX_SCALES,
    QuantizationKernels,
    check_lanes,
    fraction_bits,
)
from hvd_compress.kernels.protocol.sparsification import LOG_ROWS, SparsificationKernels, join_logarithms
from hvd_compress.kernels.protocol.spectra import (
    RangeCode,
    Sections,
    SpectrumKernels,
    check_code,
    check_sections,
    packed_bytes,
)

__all__ = [
    "BLOCK",
    "FEISTEL_ROUNDS",
    "LANES",
    "LOG_ROWS",
    "MAX_LEVELS",
    "MAX_SCALES",
    "WIRES",
    "CorruptPayload",
    "Float32",
    "Int64",
    "Kernels",
    "Moments",
    "Pieces",
    "RangeCode",
    "SectionMoments",
    "Sections",
    "Selection",
    "UInt8",
    "UInt16",
    "UInt32",
    "Words",
    "check_code",
    "check_lanes",
    "check_sections",
    "fold_lanes",
    "fraction_bits",
    "join_logarithms",
    "packed_bytes",
    "sample_lines",
    "widen",
    "workspace",
]


class Kernels(SparsificationKernels, QuantizationKernels, SpectrumKernels, ArrayOperations, Protocol):
    """What a kernel set provides. Arrays are one-dimensional and C-contiguous unless said otherwise.

    Which NaN an arithmetic operation makes is not specified; everything else is, to the last bit. Wrong arguments (a
    dtype, a length, a negative threshold) raise TypeError or ValueError that name the argument, before anything is
    written. Thresholds, scales and factors are rounded to float32 first.
    """

    name: str
