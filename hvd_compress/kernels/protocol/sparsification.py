"""The kernels of error feedback and sparsification: add, sample, select, pack, accumulate."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.protocol.definitions import Float32, Moments, Pieces, Selection, UInt8, UInt16, UInt32

LOG_ROWS = 512
"""Rows of 16 whose significands ``log_sum`` multiplies before a logarithm is taken: 2**512 is still finite."""


def join_logarithms(exponents: int, products: NDArray[np.float64]) -> float:
    """Return the logarithm of ``prod(products) * 2**exponents``, from products in [1, 2**512): ``log_sum``'s last
    step."""
    return exponents * math.log(2.0) + float(np.log(products).sum())


class SparsificationKernels(Protocol):
    """What a kernel set provides for memories and sparse payloads; ``d`` is a bucket's element count.

    ``memory`` (float32, ``d``) is the error-feedback memory or None for none; ``pieces`` are the gradients
    (float32) whose concatenation has ``d`` elements, or empty for a zero gradient. ``a = memory + gradient``,
    rounded once to float32, is what a compressor compresses; without a memory it is the gradient, and without pieces
    the memory, bit for bit. To a gradient a memory's denormals (below ``2**-126``) are added as +0.0: what has decayed
    to them would stay there for ever, and make every operation on it slow. ``out`` may be ``memory`` itself, and a
    piece may be exactly the part of ``out`` that it is written to; other overlaps are not allowed.
    """

    def add(self, memory: Float32 | None, pieces: Pieces, out: Float32) -> bool:
        """Write ``out = a``; return whether all elements of it are finite."""
        ...

    def add_momentum(
        self,
        momentum: Float32,
        velocity: Float32,
        pieces: Pieces,
        beta: float,
        nesterov: bool,
        momentum_out: Float32,
        velocity_out: Float32,
    ) -> bool:
        """Write DGC's momentum correction: ``u' = beta*u + g``; ``v' = v + u'`` (float32, every operation rounded;
        denormals of ``u`` and ``v`` are +0.0).

        With ``nesterov``, ``v' = v + (beta*u' + g)``, and the factor ``beta / (1 - beta)`` below is multiplied by
        ``beta`` once more. Without pieces nothing is added where ``g`` stands.

        Return whether every ``v'`` is finite and will stay so if nothing of it is ever sent, for then it approaches
        ``v' + u' * beta / (1 - beta)``: whether the largest ``|v'|`` plus the largest ``|u'|`` times ``beta / (1 -
        beta)`` (float32, every operation rounded) is below ``1.5 * 2**127``, which leaves room for roundings and
        ordinary gradients. The outputs may be the inputs themselves.
        """
        ...

    def sample(self, memory: Float32 | None, pieces: Pieces, key: int, lines: int, out: Float32) -> Moments:
        """Write ``|a|`` of a stratified random sample of cache lines to ``out``; return its moments.

        The ``L = d // 16`` whole lines are cut into ``lines`` strata ``[i*L//lines, (i+1)*L//lines)``; from stratum
        ``i`` of ``w`` lines comes line ``lo + ((hash32(key, i) * w) >> 32)``. With ``lines >= L`` every element is
        taken in order (also those after the last whole line). Lanes of the sums go by the position in ``out``;
        ``largest`` is by magnitude bits: NaN wins. ``count`` is the number of elements written, and
        ``out`` must have room for ``16 * lines`` elements, or for ``d`` when ``lines >= L``. It is on the host.
        """
        ...

    def exceedances(self, x: Float32, threshold: float, out: Float32) -> Moments:
        """Compact the ``x > threshold`` (``x >= 0``) to ``out``, which may be ``x``; return moments of the differences.

        ``threshold >= 0``; the differences are taken in float64. Lanes go by the position
        in ``out``. ``largest`` is the largest difference, rounded to float32. ``out`` is at least as
        long as ``x``; beyond the ``count`` exceedances it is undefined afterwards.
        """
        ...

    def log_sum(self, x: Float32) -> tuple[int, float]:
        """Count the ``x > 0`` and sum their natural logarithms (``x`` finite, >= 0; denormals count).

        A float64 ``x`` is ``m * 2**e`` with ``1 <= m < 2``; the ``e`` are summed as integers, and the ``m`` are
        multiplied per lane over chunks of 512 rows of 16; NumPy takes the logarithms of these few products and adds
        them up (``join_logarithms``).
        """
        ...

    def kth_largest(self, x: Float32, k: int) -> float:
        """Return the ``k``-th largest element (1 <= k <= len(x)) of the non-negative, finite ``x``: exact."""
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
        """Add, compare, emit and clear in one pass. The elements with ``|a| > threshold`` (threshold >= 0, may be inf)
        are kept, and of these, if they are more than ``capacity``, the ``capacity`` largest (equal magnitudes: lowest
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
        """Write ``out = values[indices]``."""
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
        Raise ValueError if the indices do not ascend strictly, exceed the blocks, or a count exceeds its dtype.
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
        to float32. ``entries[r]`` is the count in payload ``r``'s header. Everything is checked: ``entries[r] <=
        capacity``, block counts at most the block's length that sum to ``entries[r]``, strictly ascending positions
        inside the block, finite values. Raise CorruptPayload otherwise; ``out`` is then undefined.
        """
        ...

    def narrow(self, x: Float32, wire: int, out: UInt16) -> None:
        """Write float32 as bfloat16 or float16 bits, rounded to nearest even; what overflows becomes infinite.

        A NaN keeps its sign and the upper bits of its significand, and becomes quiet.
        """
        ...

    def accumulate_dense(self, payloads: UInt16, wire: int, scale: float, out: Float32) -> bool:
        """Write ``out = sum over the rows, in order, of float32(widen(row) * scale)``; ``payloads``: shape ``(n, d)``.

        The sums start from +0.0, and each addition is rounded to float32. Return whether all of them are finite: one to
        which any row gave a NaN or an infinity is not.
        """
        ...
