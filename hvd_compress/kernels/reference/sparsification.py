"""Error feedback and sparsification in NumPy: the specification of the kernels for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.fourier import without_denormals
from hvd_compress.kernels.hashing import hash32
from hvd_compress.kernels.protocol import (
    BLOCK,
    LANES,
    LOG_ROWS,
    WIRES,
    CorruptPayload,
    Float32,
    Moments,
    Pieces,
    Selection,
    UInt8,
    UInt16,
    UInt32,
    fold_lanes,
    join_logarithms,
    widen,
    workspace,
)

MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
SAFE_VELOCITY = np.float32(1.5 * 2.0**127)


def _add(memory: Float32 | None, pieces: Pieces, d: int) -> Float32:
    """Return ``a = memory + gradient``, a new array."""
    return _sum(without_denormals(memory) if memory is not None and pieces else memory, pieces, d)


def _sum(memory: Float32 | None, pieces: Pieces, d: int) -> Float32:
    """Return the sum of ``memory`` and the gradient as they are, a new array."""
    if memory is not None and len(memory) != d:
        raise ValueError(f"memory has {len(memory)} elements, not {d}")
    if not pieces:
        return np.zeros(d, np.float32) if memory is None else memory.copy()
    if (total := sum(map(len, pieces))) != d:
        raise ValueError(f"pieces have {total} elements in all, not {d}")
    gradient = np.concatenate(pieces)
    with np.errstate(over="ignore", invalid="ignore"):
        return gradient if memory is None else memory + gradient


def _bits(x: Float32) -> UInt32:
    """Return the magnitudes as integers, which sort like the magnitudes; infinity comes next, and NaN last."""
    return x.view(np.uint32) & MAGNITUDE


def _threshold(threshold: float) -> np.float32:
    if not threshold >= 0:
        raise ValueError(f"threshold must be >= 0, not {threshold}")
    with np.errstate(over="ignore"):
        return np.float32(threshold)


def lane_sum(x: NDArray[np.float64]) -> float:
    """Return the sum of ``x``, strictly in order over 16 interleaved lanes, and then of the lanes by halves."""
    rows = np.zeros((-(-len(x) // LANES), LANES))
    rows.reshape(-1)[: len(x)] = x
    if not len(rows):
        return 0.0
    lanes: NDArray[np.float64] = np.add.accumulate(rows, axis=0)[-1]  # accumulate, unlike sum, never reorders
    return fold_lanes(lanes)


def _moments(x: NDArray[np.float64], count: int, largest: float) -> Moments:
    with np.errstate(over="ignore", invalid="ignore"):
        return Moments(count, lane_sum(x), lane_sum(x * x), largest)


def moments_of_magnitudes(magnitudes: Float32) -> Moments:
    """Return the moments of these magnitudes, in their order."""
    bits = magnitudes.view(np.uint32)
    largest = bits.max(initial=0).astype(np.uint32).view(np.float32)
    return _moments(magnitudes.astype(np.float64), len(magnitudes), float(largest))


def _wire(wire: int, *, narrow: bool) -> None:
    if not (1 if narrow else 0) <= wire < len(WIRES):
        raise ValueError(f"wire must be {'1 or 2' if narrow else '0, 1 or 2'} (see WIRES), not {wire}")


def _narrow(x: Float32, wire: int) -> UInt16:
    bits = x.view(np.uint32)
    if WIRES[wire] == "bfloat16":
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        quiet = (bits >> 16) | 0x0040
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = x.astype(np.float16).view(np.uint16)
        quiet = ((bits >> 16) & 0x8000) | 0x7E00 | ((bits >> 13) & 0x3FF)
    return np.where(np.isnan(x), quiet, rounded).astype(np.uint16)


def _narrow_finite(x: Float32, wire: int) -> UInt16:
    words = _narrow(x, wire)
    infinity = 0x7F80 if WIRES[wire] == "bfloat16" else 0x7C00
    words[(words & 0x7FFF) == infinity] -= 1  # the largest finite value
    return words


class SparsificationReference:
    """``SparsificationKernels`` in NumPy."""

    def add(self, memory: Float32 | None, pieces: Pieces, out: Float32) -> bool:
        out[:] = _add(memory, pieces, len(out))
        return bool(np.isfinite(out).all())

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
        factor = np.float32(beta)
        momentum, velocity = without_denormals(momentum), without_denormals(velocity)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            momentum_out[:] = _sum(factor * momentum, pieces, len(momentum_out))
            step = _sum(factor * momentum_out, pieces, len(momentum_out)) if nesterov else momentum_out
            velocity_out[:] = velocity + step
            u, v = (np.abs(x).max(initial=np.float32(0)) for x in (momentum_out, velocity_out))
            coming = factor / (np.float32(1) - factor)
            return bool(v + u * (coming * factor if nesterov else coming) < SAFE_VELOCITY)

    def sample(self, memory: Float32 | None, pieces: Pieces, key: int, lines: int, out: Float32) -> Moments:
        d = len(memory) if memory is not None else sum(map(len, pieces))
        magnitudes = np.abs(_add(memory, pieces, d))
        whole = d // LANES
        if lines < 0:
            raise ValueError(f"lines must be >= 0, not {lines}")
        if lines < whole:
            i = np.arange(lines, dtype=np.uint64)
            lo, hi = i * whole // lines, (i + 1) * whole // lines
            chosen = lo + ((hash32(key, i) * (hi - lo)) >> np.uint64(32))
            magnitudes = magnitudes[: whole * LANES].reshape(whole, LANES)[chosen.astype(np.intp)].reshape(-1)
        if len(out) < len(magnitudes):
            raise ValueError(f"out has room for {len(out)} elements, not for {len(magnitudes)}")
        out[: len(magnitudes)] = magnitudes
        return moments_of_magnitudes(magnitudes)

    def exceedances(self, x: Float32, threshold: float, out: Float32) -> Moments:
        limit = _threshold(threshold)
        if len(out) < len(x):
            raise ValueError(f"out has {len(out)} elements, fewer than x, {len(x)}")
        above = x[x > limit]
        out[: len(above)] = above
        excess = above.astype(np.float64) - np.float64(limit)
        with np.errstate(over="ignore"):
            return _moments(excess, len(above), float(np.float32(excess.max(initial=0.0))))

    def log_sum(self, x: Float32) -> tuple[int, float]:
        positive = x > 0
        significand, exponent = np.frexp(np.where(positive, x, np.float32(1)).astype(np.float64))
        rows = np.ones((-(-len(x) // (LOG_ROWS * LANES)), LOG_ROWS, LANES))
        rows.reshape(-1)[: len(x)] = significand * 2  # frexp's significand is in [0.5, 1)
        products = np.multiply.accumulate(rows, axis=1)[:, -1]
        return int(positive.sum()), join_logarithms(int((exponent.astype(np.int64) - 1).sum()), products)

    def kth_largest(self, x: Float32, k: int) -> float:
        if not 1 <= k <= len(x):
            raise ValueError(f"k must be in [1, {len(x)}], not {k}")
        return float(np.partition(x, len(x) - k)[len(x) - k])

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
        limit = _threshold(threshold)
        if capacity < 0:
            raise ValueError(f"capacity must be >= 0, not {capacity}")
        if not len(indices) == len(values) >= workspace(capacity):
            raise ValueError(f"indices and values need {workspace(capacity)} elements each")
        a = _add(memory, pieces, len(out))
        bits = _bits(a)
        if (bits >= INFINITY).any():
            return Selection(0, 0, False)
        found = np.flatnonzero(bits > limit.view(np.uint32))
        largest_first = np.argsort(-bits[found].astype(np.int64), kind="stable")  # ties stay in order of their index
        kept = np.sort(found[largest_first[:capacity]])
        indices[: len(kept)] = kept
        values[: len(kept)] = a[kept]
        a[kept] = 0.0
        out[:] = a
        return Selection(len(found), len(kept), True)

    def restore(self, out: Float32, indices: UInt32, values: Float32) -> None:
        if len(indices) != len(values):
            raise ValueError(f"indices and values differ in length: {len(indices)} and {len(values)}")
        if int(indices.max(initial=0)) >= max(len(out), 1):
            raise ValueError(f"indices must be below len(out) = {len(out)}")
        out[indices] = values

    def take(self, values: Float32, indices: UInt32, out: Float32) -> None:
        if len(out) != len(indices):
            raise ValueError(f"out has {len(out)} elements, not {len(indices)}")
        if int(indices.max(initial=0)) >= max(len(values), 1):
            raise ValueError(f"indices must be below len(values) = {len(values)}")
        out[:] = values[indices]

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
        _wire(wire, narrow=False)
        n = len(indices)
        if len(values) != n or len(positions) != len(words) or n > len(positions):
            raise ValueError(
                f"lengths do not fit: indices {n}, values {len(values)}, positions {len(positions)}, words {len(words)}"
            )
        if (indices[1:] <= indices[:-1]).any() or (n and int(indices[-1]) >= len(counts) * BLOCK):
            raise ValueError(f"indices must ascend strictly and be below {len(counts)} blocks of {BLOCK}")
        per_block = np.bincount(indices >> 16, minlength=len(counts))
        if per_block.max(initial=0) > np.iinfo(counts.dtype).max:
            raise ValueError(f"a block of {per_block.max()} entries overflows counts of {counts.dtype}")
        if memory is not None and n and wire and int(indices[-1]) >= len(memory):
            raise ValueError(f"memory has {len(memory)} elements, and indices reach {indices[-1]}")
        counts[:] = per_block
        positions[:n], positions[n:], words[n:] = indices & 0xFFFF, 0, 0
        if WIRES[wire] == "float32":
            words[:n] = values
            return
        words[:n] = narrowed = _narrow_finite(values, wire)
        if memory is not None:
            memory[indices] = values - widen(narrowed, wire)

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
        _wire(wire, narrow=False)
        d, blocks = len(out), -(-len(out) // BLOCK)
        sections = {
            "counts": (counts_at, np.dtype(f"<u{count_bytes}"), blocks),
            "positions": (positions_at, np.dtype("<u2"), capacity),
            "values": (values_at, np.dtype("<u2" if wire else "<f4"), capacity),
        }
        for name, (at, dtype, length) in sections.items():
            if not 0 <= at <= payloads.shape[1] - dtype.itemsize * length:
                raise ValueError(f"{name}_at = {at} and its {length} entries exceed {payloads.shape[1]} bytes")
        if len(entries) != len(payloads):
            raise ValueError(f"entries has {len(entries)} elements for {len(payloads)} payloads")

        decoded = []
        lengths = np.minimum(d - BLOCK * np.arange(blocks), BLOCK)
        for r, (row, n) in enumerate(zip(payloads, entries.tolist(), strict=True)):
            counts, positions, words = (row[at : at + t.itemsize * m].view(t) for at, t, m in sections.values())
            counts = counts.astype(np.int64)
            if n > capacity or counts.sum() != n or (counts > lengths).any():
                raise CorruptPayload(f"payload {r}: {n} entries, capacity {capacity}, block counts {counts.sum()}")
            block = np.repeat(np.arange(blocks), counts)
            p = positions[:n].astype(np.int64) + block * BLOCK
            if (p[1:] <= p[:-1]).any() or (p >= d).any():
                raise CorruptPayload(f"payload {r}: positions do not ascend, or exceed their block")
            values = widen(words[:n], wire)
            if not np.isfinite(values).all():
                raise CorruptPayload(f"payload {r}: a value is not finite")
            decoded.append((p, values))
        out[:] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for p, x in decoded:
                out[p] += x * np.float32(scale)

    def narrow(self, x: Float32, wire: int, out: UInt16) -> None:
        _wire(wire, narrow=True)
        if len(out) != len(x):
            raise ValueError(f"out has {len(out)} elements, x has {len(x)}")
        out[:] = _narrow(x, wire)

    def accumulate_dense(self, payloads: UInt16, wire: int, scale: float, out: Float32) -> bool:
        _wire(wire, narrow=True)
        if payloads.ndim != 2 or payloads.shape[1] != len(out):
            raise ValueError(f"payloads has shape {payloads.shape}, not (n, {len(out)})")
        out[:] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for row in payloads:
                out += widen(row, wire) * np.float32(scale)
        return bool(np.isfinite(out).all())
