"""Inputs for kernel tests: buckets of awkward values in awkward pieces, payloads, and comparison to the last bit."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from hypothesis import strategies as st

from hvd_compress.kernels import BLOCK, workspace

LENGTHS = [0, 1, 15, 16, 17, 31, 63, 64, 65, 79, 80, 1000, 4095, 4096, 4097, 65_535, 65_536, 65_537, 70_001, 200_000]
"""Around a line, a group of 64, a block; more than three blocks."""


def _heavy(rng, d):
    return rng.standard_normal(d) / np.maximum(rng.random(d), 1e-3) ** 2


def _extreme(rng, d):
    return np.sign(rng.standard_normal(d)) * 2.0 ** rng.uniform(-149, 126, d)


VALUES = {
    "normal": lambda rng, d: rng.standard_normal(d),
    "heavy tails": _heavy,
    "extreme": _extreme,  # sums of two stay finite
    "ties": lambda rng, d: rng.integers(-3, 4, d),
    "equal": lambda rng, d: np.full(d, rng.choice([0.5, -1.25, 1e-40])),
    "zeros": lambda rng, d: np.zeros(d),
    "signed zeros": lambda rng, d: rng.choice([0.0, -0.0], d),
    "mostly zeros": lambda rng, d: rng.standard_normal(d) * (rng.random(d) < 0.002),
    "denormals": lambda rng, d: rng.integers(-9, 10, d) * 2.0**-149,
    "one": lambda rng, d: (np.arange(d) == d // 2) * 1.0,
}
NOT_FINITE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def unaligned(x, offset):
    """A copy of x that begins ``offset`` elements after a cache line does."""
    room = np.empty(len(x) + 48, np.float32)
    start = -room.ctypes.data // 4 % 16 + offset
    room[start : start + len(x)] = x
    return room[start : start + len(x)]


@dataclasses.dataclass
class Bucket:
    memory: np.ndarray | None
    pieces: list[np.ndarray]
    d: int

    @property
    def a(self):
        """memory + gradient, in NumPy; a memory's denormals count as zero where there is a gradient."""
        memory = np.zeros(self.d, np.float32) if self.memory is None else self.memory
        if self.pieces:
            memory = np.where(np.abs(memory) < np.finfo(np.float32).tiny, np.float32(0), memory)
        gradient = np.concatenate(self.pieces) if self.pieces else np.zeros(self.d, np.float32)
        with np.errstate(all="ignore"):
            return memory + gradient

    def copy(self):
        memory = None if self.memory is None else self.memory.copy()
        return Bucket(memory, [p.copy() for p in self.pieces], self.d)


def make_bucket(seed, d, values="normal", *, memory=True, cuts=(), offset=0, bad=None):
    """A bucket of ``d`` elements; ``cuts`` are where pieces end (fractions); ``bad`` puts in one that is not finite."""
    rng = np.random.default_rng(seed)

    def draw():
        with np.errstate(all="ignore"):
            return VALUES[values](rng, d).astype(np.float32)

    m, g = (draw() if memory else None), draw()
    if bad and d:
        (m if memory and rng.random() < 0.5 else g)[rng.integers(d)] = NOT_FINITE[bad]
    ends = [0, *sorted(int(c * d) for c in cuts), d]
    return Bucket(m, [unaligned(g[a:b], offset % 16) for a, b in itertools.pairwise(ends)], d)


def buckets(*, not_finite=True):
    """Hypothesis strategy for make_bucket."""
    return st.builds(
        make_bucket,
        st.integers(0, 2**32 - 1),
        st.sampled_from(LENGTHS) | st.integers(0, 3000),
        st.sampled_from(sorted(VALUES)),
        memory=st.booleans(),
        cuts=st.lists(st.floats(0, 1), max_size=12),
        offset=st.integers(0, 15),
        bad=st.sampled_from([None, None, None, *sorted(NOT_FINITE)]) if not_finite else st.none(),
    )


def same(x, y):
    """Equal to the last bit; NaNs are all alike."""
    if isinstance(x, np.ndarray):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        if x.dtype == np.float32:
            nan = np.isnan(x)
            np.testing.assert_array_equal(nan, np.isnan(y))
            x, y = np.where(nan, 0, x.view(np.uint32)), np.where(nan, 0, y.view(np.uint32))
        np.testing.assert_array_equal(x, y)
    elif isinstance(x, tuple):
        assert len(x) == len(y)
        for a, b in zip(x, y, strict=True):
            same(a, b)
    else:
        assert x == y or (x != x and y != y), (x, y)


def select(kernels, bucket, threshold, capacity, out=None):
    """Run ``select`` with fresh workspaces: the selection, ``out``, indices, values."""
    out = kernels.empty(bucket.d) if out is None else out
    indices, values = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
    s = kernels.select(bucket.memory, bucket.pieces, out, threshold, capacity, indices, values)
    return s, out, indices[: s.kept].copy(), values[: s.kept].copy()


@dataclasses.dataclass
class Layout:
    """Sections of a payload, as codecs lay them out: counts, positions, values."""

    d: int
    capacity: int
    wire: int
    count_bytes: int

    @property
    def blocks(self):
        return -(-self.d // BLOCK)

    @property
    def at(self):
        counts = 8
        positions = counts + self.blocks * self.count_bytes
        return counts, positions, positions + 2 * self.capacity

    @property
    def bytes(self):
        return self.at[2] + self.capacity * (2 if self.wire else 4)

    def pack(self, kernels, indices, values, memory=None):
        """One payload, as uint8."""
        counts = np.full(self.blocks, 7, np.uint16 if self.count_bytes == 2 else np.uint32)
        positions = np.full(self.capacity, 7, np.uint16)
        words = np.full(self.capacity, 7, np.uint16 if self.wire else np.float32)
        kernels.pack(indices, values, self.wire, counts, positions, words, memory)
        header = np.zeros(8, np.uint8)
        return np.concatenate([header, *(s.view(np.uint8) for s in (counts, positions, words))])

    def accumulate(self, kernels, payloads, entries, scale=1.0, out=None):
        out = kernels.empty(self.d) if out is None else out
        kernels.accumulate(
            payloads, *self.at, self.count_bytes, self.capacity, self.wire, np.asarray(entries, np.uint32), scale, out
        )
        return out
