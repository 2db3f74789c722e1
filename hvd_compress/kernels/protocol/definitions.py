"""Types, constants and results that the kernels' protocols share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]
Int64 = NDArray[np.int64]
Words = NDArray[np.int32] | NDArray[np.int64]
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


class SectionMoments(NamedTuple):
    """Of the elements of every section of an array: the largest magnitude, the sum, and the sum of squares.

    Sums are as in ``Moments``; an element's lane goes by its position in the section.
    """

    largest: Float32
    totals: NDArray[np.float64]
    squares: NDArray[np.float64]


def fold_lanes(lanes: NDArray[np.float64]) -> float:
    """Return the sum of ``LANES`` lanes, added as ``Moments`` says."""
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


def widen(words: UInt16 | Float32, wire: int) -> Float32:
    """Return the float32 values that ``words`` of a wire (an index of ``WIRES``) stand for."""
    if WIRES[wire] == "float32":
        return words.view(np.float32)
    if WIRES[wire] == "bfloat16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.view(np.float16).astype(np.float32)


class Selection(NamedTuple):
    """What a ``select`` pass found."""

    found: int
    """Elements whose magnitude exceeded the given threshold, kept or not; 0 when not finite."""
    kept: int
    """Elements kept: ``min(found, capacity)``; 0 when not finite."""
    finite: bool


class CorruptPayload(ValueError):
    """A received payload breaks its format. The same bytes reach every rank, so every rank raises this alike."""


def sample_lines(elements: int, size: int) -> tuple[int, int]:
    """Return the ``lines`` by which ``Kernels.sample`` takes about ``elements`` of ``size``, or all of them where that
    is not much more; and the elements that it then may write."""
    lines = -(-elements // LANES)
    if 2 * lines * LANES >= size:
        lines = size
    return lines, min(lines * LANES, size)


def workspace(capacity: int) -> int:
    """Return the length of the index and value workspaces that ``Kernels.select`` needs for a capacity."""
    return 2 * capacity + 4096
