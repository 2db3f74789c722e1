"""The hot loops: one protocol, several implementations that produce identical bytes.

``reference`` (NumPy) is the specification: short and readable. ``host`` (C++) is what runs. Every function below
is defined down to the last bit, so that payloads do not depend on the kernel set or on the instruction set that
made them: sums are taken in float64 over sixteen interleaved lanes in a fixed order, thresholds are compared as
integers, random choices come from a counter-based hash. The kernels of quantizers are in ``lanes``.

Choose with the environment variable ``HVD_COMPRESS_KERNELS=host|reference`` (default ``host``). A missing C++
extension is an error that says so, never a silent fall-back to the slow kernels.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.frequency import FrequencyKernels
from hvd_compress.kernels.lanes import LaneKernels

Float32 = NDArray[np.float32]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]
UInt8 = NDArray[np.uint8]
Pieces = Sequence[Float32]

LANES = 16
"""Elements per cache line of float32, and lanes of every sum: element i of a pass is added to lane i % 16."""

BLOCK = 65_536
"""Elements per block of a sparse payload: an in-block position fits 16 bits."""

WIRES = ("float32", "bfloat16", "float16")
"""How values travel; the index is the code in the payload header."""


class Moments(NamedTuple):
    """Sums over the elements a pass selected, accumulated in float64 over ``LANES`` lanes.

    The lanes are added as ``s[:8] + s[8:]``, ``s[:4] + s[4:]``, ``s[:2] + s[2:]``, ``s[0] + s[1]``.
    """

    count: int  # type: ignore[assignment]  # NamedTuple has a method of that name, which nobody needs
    total: float
    squares: float
    largest: float
    """Largest magnitude (float32) among the elements; 0.0 when there are none; NaN or inf when one is not finite."""

    @property
    def finite(self) -> bool:
        return self.largest < float("inf")  # False for NaN as well


class Selection(NamedTuple):
    """What a ``select`` pass found."""

    found: int
    """Elements whose magnitude exceeded the given threshold, kept or not; 0 when not finite."""
    kept: int
    """Elements kept: ``min(found, capacity)``; 0 when not finite."""
    finite: bool


class CorruptPayload(ValueError):
    """A received payload breaks its format. The same bytes reach every rank, so every rank raises this alike."""


class Kernels(LaneKernels, FrequencyKernels, Protocol):
    """What a kernel set provides. Arrays are one-dimensional and C-contiguous; ``d`` is a bucket's element count.

    ``memory`` (float32, ``d``) is the error-feedback memory or None for none; ``pieces`` are the gradients
    (float32) whose concatenation has ``d`` elements, or empty for a zero gradient. ``a = memory + gradient``,
    rounded once to float32, is what a compressor compresses; without a memory it is the gradient, and without pieces
    the memory, bit for bit. ``out`` may be ``memory`` itself, and a piece may be exactly the part of ``out`` that it
    is written to; other overlaps are not allowed. Thresholds, scales and factors are rounded to float32 first. Which
    NaN an arithmetic operation makes is not specified; everything else is, to the last bit. Wrong arguments (a dtype,
    a length, a negative threshold) raise TypeError or ValueError, and name the argument.
    """

    name: str

    def empty(self, n: int) -> Float32:
        """A new, uninitialised float32 array of ``n`` elements: at least line-aligned, in huge pages where large."""
        ...

    def add(self, memory: Float32 | None, pieces: Pieces, out: Float32) -> Moments:
        """``out = a``, and the moments of ``|a|`` over all elements (largest by magnitude bits, so NaN wins)."""
        ...

    def add_momentum(
        self,
        momentum: Float32,
        velocity: Float32,
        pieces: Pieces,
        beta: float,
        momentum_out: Float32,
        velocity_out: Float32,
    ) -> bool:
        """DGC's momentum correction: ``u' = beta*u + g``; ``v' = v + u'`` (float32, each operation rounded, no FMA).

        Returns whether every ``v'`` is finite. The outputs may be the inputs themselves.
        """
        ...

    def sample(self, memory: Float32 | None, pieces: Pieces, key: int, lines: int, out: Float32) -> Moments:
        """Write ``|a|`` of a stratified random sample of cache lines to ``out``; return its moments.

        The ``L = d // 16`` whole lines are cut into ``lines`` strata ``[i*L//lines, (i+1)*L//lines)``; from stratum
        ``i`` of ``w`` lines comes line ``lo + ((hash32(key, i) * w) >> 32)``. With ``lines >= L`` every element is
        taken in order (also those after the last whole line). Lanes of the sums go by the position in ``out``
        (as in ``add`` with every element). ``count`` is the number of elements written, and
        ``out`` must have room for ``16 * lines`` elements, or for ``d`` when ``lines >= L``.
        """
        ...

    def exceedances(self, x: Float32, threshold: float, out: Float32) -> Moments:
        """Compact the ``x > threshold`` (``x >= 0``) to ``out``, which may be ``x``; the moments of ``x - threshold``.

        ``threshold >= 0`` is rounded to float32 first; the differences are taken in float64. Lanes go by the position
        in ``out``. ``largest`` is the largest difference, rounded to float32. ``out`` is at least as
        long as ``x``; beyond the ``count`` exceedances it is undefined afterwards.
        """
        ...

    def log_sum(self, x: Float32) -> tuple[int, float]:
        """Count of the ``x > 0`` and the sum of their natural logarithms (``x`` finite, >= 0; denormals count).

        A float64 ``x`` is ``m * 2**e`` with ``1 <= m < 2``; the ``e`` are summed as integers, and the ``m`` are
        multiplied per lane over chunks of 512 rows of 16; NumPy takes the logarithms of these few products and adds
        them up (``reference.join_logarithms``).
        """
        ...

    def kth_largest(self, x: Float32, k: int) -> float:
        """The ``k``-th largest element (1 <= k <= len(x)) of the non-negative, finite ``x``: exact."""
        ...

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
        """The fused pass: add, compare, emit, clear. Keep the elements with ``|a| > threshold`` (threshold >= 0, may
        be inf), and of these, if they are more than ``capacity``, the ``capacity`` largest (equal magnitudes: lowest
        index first). ``indices[:kept]`` (ascending) and ``values[:kept]`` receive them; ``out`` receives ``a`` with
        the kept elements set to +0.0.

        ``indices`` and ``values`` are workspaces of equal length >= ``workspace(capacity)``; what lies beyond
        ``kept`` is undefined afterwards. When an element is not finite, ``found`` and ``kept`` are 0 and ``out`` is
        undefined.
        Comparison is on magnitude bits: integers, exact, the same in every instruction set.
        """
        ...

    def restore(self, out: Float32, indices: UInt32, values: Float32) -> None:
        """Undo a selection: ``out[indices] = values``."""
        ...

    def take(self, values: Float32, indices: UInt32, out: Float32) -> None:
        """``out = values[indices]``."""
        ...

    def pack(
        self,
        indices: UInt32,
        values: Float32,
        wire: int,
        counts: UInt16 | UInt32,
        positions: UInt16,
        words: Float32 | UInt16,
        memory: Float32 | None,
    ) -> None:
        """Write ascending ``indices`` and ``values`` as the three sections of a sparse payload.

        ``counts[b]`` is the number of entries in block ``b``, ``positions`` their in-block positions, ``words`` the
        values in the wire's type; entries beyond ``len(indices)`` are zeroed. 16-bit wires round to nearest even;
        what would round to infinity becomes the largest finite value. What rounding takes off is left in
        ``memory[indices] = value - decoded`` (if ``memory`` is not None); a float32 wire touches no memory.
        Raises ValueError if the indices do not ascend strictly, exceed the blocks, or a count exceeds its dtype.
        """
        ...

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
        """Decode ``n`` sparse payloads (``payloads``: uint8, shape ``(n, bytes)``) into ``out`` (overwritten).

        ``out[p] = sum over payloads, in order, of float32(value * scale)``, starting from +0.0, each addition rounded
        to float32. ``entries[r]`` is the count in payload ``r``'s header. Everything is checked before anything is
        written: ``entries[r] <= capacity``, block counts at most the block's length that sum to ``entries[r]``,
        strictly ascending positions inside the block. Raises CorruptPayload.
        """
        ...

    def narrow(self, x: Float32, wire: int, out: UInt16) -> None:
        """float32 to bfloat16 or float16 bits, round to nearest even; overflow to inf.

        A NaN keeps its sign and the upper bits of its significand, and becomes quiet.
        """
        ...

    def accumulate_dense(self, payloads: UInt16, wire: int, scale: float, out: Float32) -> None:
        """``out = sum over the n rows, in order, of float32(widen(row) * scale)``; ``payloads`` has shape ``(n, d)``.

        The sums start from +0.0, and each addition is rounded to float32.
        """
        ...


def workspace(capacity: int) -> int:
    """Length of the index and value workspaces that ``Kernels.select`` needs for a capacity."""
    return 2 * capacity + 4096


def hash64(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Counter-based hash: SplitMix64's finalizer applied to ``key + (counter+1)*golden``.

    ``key`` is a 64-bit integer that ``mix`` made of (seed, step, bucket). Any counter's hashes are a bijection of the
    keys.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(key & 0xFFFFFFFFFFFFFFFF) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash32(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The upper half of ``hash64``; results are in [0, 2**32)."""
    return hash64(key, counter) >> np.uint64(32)


def mix32(key: int, counter: UInt32) -> UInt32:
    """A hash of 32-bit counters that is cheap in vectors (modulo 2**32); its upper bits are the better ones.

    For any key it is a bijection; for any counter, and either half of the key, it is exactly uniform over the other.
    """
    x = counter * np.uint32(0x9E3779B9) + np.uint32(key & 0xFFFFFFFF)
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15)) + np.uint32(key >> 32)
    return x * np.uint32(0x846CA68B)


def scramble(key: int, d: int) -> UInt32:
    """The random numbers of elements ``0 ... d - 1`` of a quantizer; each is exactly uniform over the keys.

    For its e-th element line ``2*p`` has ``h = mix32(hash64(key, 0), 16*p + e)``, and line ``2*p + 1`` has
    ``h * 0x915F77F5`` (mod 2**32): the next number of a linear congruential generator whose pairs are well spread.
    """
    mixed = int(hash64(key, np.zeros(1, np.uint64))[0])
    i = np.arange(d, dtype=np.uint32)
    line = i >> np.uint32(4)
    h = mix32(mixed, (line >> np.uint32(1)) * np.uint32(LANES) + (i & np.uint32(15)))
    return np.where(line & np.uint32(1), h * np.uint32(0x915F77F5), h)


def mix(*parts: int) -> int:
    """Fold integers (seed, step, bucket, ...) into one 64-bit key: SplitMix64's finalizer over a running sum."""
    mask = 0xFFFFFFFFFFFFFFFF
    key = 0
    for part in parts:
        z = (key + part + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        key = z ^ (z >> 31)
    return key


@functools.cache
def get(name: str | None = None) -> Kernels:
    """The kernel set called ``name``: ``"host"`` or ``"reference"``; None asks ``HVD_COMPRESS_KERNELS``."""
    name = name or os.environ.get("HVD_COMPRESS_KERNELS", "host")
    if name not in ("host", "reference"):
        raise ValueError(f"unknown kernel set {name!r}; HVD_COMPRESS_KERNELS takes 'host' or 'reference'")
    module = importlib.import_module(f"hvd_compress.kernels.{name}")
    kernels: Kernels = module.KERNELS
    return kernels
