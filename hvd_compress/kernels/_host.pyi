"""The C++ extension's functions; ``host`` is the interface. Any array is a C-contiguous buffer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.protocol import Float32, Int64, RangeCode, Sections, UInt8, UInt16, UInt32, Words

class Block:
    """``n`` bytes of fresh memory, which a buffer's consumers keep alive."""

    def __init__(self, n: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def isa() -> str: ...
def available() -> list[str]: ...
def use(name: str) -> None: ...
def add(memory: Float32 | None, pieces: Sequence[Float32], out: Float32) -> tuple[int, float, float, float]: ...
def add_momentum(
    momentum: Float32,
    velocity: Float32,
    pieces: Sequence[Float32],
    beta: float,
    nesterov: bool,
    momentum_out: Float32,
    velocity_out: Float32,
) -> bool: ...
def sample(
    memory: Float32 | None, pieces: Sequence[Float32], key: int, lines: int, out: Float32
) -> tuple[int, float, float, float]: ...
def exceedances(x: Float32, threshold: float, out: Float32) -> tuple[int, float, float, float]: ...
def log_sum(x: Float32, products: NDArray[np.float64]) -> tuple[int, int]: ...
def kth_largest(x: Float32, k: int) -> float: ...
def select(
    memory: Float32 | None,
    pieces: Sequence[Float32],
    out: Float32,
    threshold: float,
    capacity: int,
    indices: UInt32,
    values: Float32,
) -> tuple[int, int, bool]: ...
def restore(out: Float32, indices: UInt32, values: Float32) -> None: ...
def take(values: Float32, indices: UInt32, out: Float32) -> None: ...
def pack(
    indices: UInt32,
    values: Float32,
    wire: int,
    counts: UInt16 | UInt32,
    positions: UInt16,
    words: Float32 | UInt16,
    memory: Float32 | None,
) -> None: ...
def accumulate(
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
) -> int: ...
def narrow(x: Float32, wire: int, out: UInt16) -> None: ...
def accumulate_dense(payloads: UInt16, wire: int, scale: float, out: Float32) -> bool: ...
def norm(pieces: Sequence[Float32], euclidean: bool) -> float: ...
def quantize(
    pieces: Sequence[Float32],
    scales: Float32,
    planes: Int64 | None,
    workers: int,
    levels: int,
    width: int,
    key: int,
    words: Words,
) -> None: ...
def dequantize(
    words: Words, planes: Int64 | None, workers: int, levels: int, width: int, scales: Float32, out: Float32
) -> None: ...
def mask(pieces: Sequence[Float32], limits: Float32, width: int, planes: Int64) -> None: ...
def permutation(key: int, start: int, size: int, out: UInt32) -> None: ...
def section_moments(
    x: Float32, ends: Int64, largest: Float32, totals: NDArray[np.float64], squares: NDArray[np.float64]
) -> None: ...
def ternarize(x: Float32, ends: Int64, scales: Float32, key: int, codes: UInt8) -> None: ...
def accumulate_ternary(payloads: UInt8, codes_at: int, ends: Int64, scales: Float32, out: Float32) -> bool: ...
def range_encode(x: Float32, code: RangeCode, stochastic: bool, key: int, out: UInt8) -> None: ...
def range_decode(packed: UInt8, bits: int, table: Float32, out: Float32) -> bool: ...
def forward(x: Float32, block: int, roots: Float32, factors: Float32, out: Float32) -> None: ...
def inverse(
    spectrum: Float32,
    block: int,
    roots: Float32,
    factors: Float32,
    scale: float,
    minuend: Float32 | None,
    out: Float32,
) -> None: ...
def select_pairs(
    pairs: Float32, scale: float, threshold: float, capacity: int, indices: UInt32, energies: Float32
) -> tuple[int, int, bool]: ...
def gather_pairs(pairs: Float32, indices: UInt32, values: Float32) -> tuple[float, float]: ...
def mark(indices: UInt32, bitmap: UInt8) -> None: ...
def synthesize(
    payloads: UInt8,
    sections: Sections,
    entries: UInt32,
    tables: Sequence[Float32],
    block: int,
    roots: Float32,
    factors: Float32,
    scale: float,
    minuend: Float32 | None,
    out: Float32,
    rest: Float32,
) -> int: ...
