"""Entries by region: where they are, what comes back, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import CorruptPayload, kernels
from hvd_compress.codecs.regions import Entries, RegionFormat
from hvd_compress.codecs.sparse import SPARSE_WIRES


@given(st.integers(1, 5000), st.integers(1, 40))
def test_every_element_has_one_place(elements: int, regions: int) -> None:
    layout = RegionFormat(elements, regions, 1)
    indices = np.arange(elements, dtype=np.uint32)
    numbers, positions = layout.placed(indices)
    np.testing.assert_array_equal(layout.indices(numbers, positions), indices)
    assert numbers.max() < regions
    assert positions.max() < layout.span
    np.testing.assert_array_equal(numbers, indices // 16 % regions)
    sizes = np.bincount(numbers, minlength=regions)
    assert sizes.max() - sizes.min() <= 16


def entries(layout: RegionFormat, seed: int) -> Entries:
    """Up to the capacity in every row, some with none."""
    rng = np.random.default_rng(seed)
    rows, positions = [], []
    for row in range(layout.regions):
        count = rng.integers(0, layout.capacity + 1)
        rows += [row] * count
        positions += sorted(rng.choice(layout.span, count, replace=False))
    values = rng.normal(size=len(rows)).astype(np.float32)
    return Entries(np.array(rows, np.int64), np.array(positions, np.int64), values)


SHAPES = [(5000, 3, 50), (200, 7, 1), (140_000, 1, 300), (600_000, 2, 70_000)]
"""One block or several, counts of 16 or of 32 bits."""


@pytest.mark.parametrize("wire", SPARSE_WIRES)
@pytest.mark.parametrize(("elements", "regions", "capacity"), SHAPES)
def test_what_is_decoded_is_what_encode_said(wire: str, elements: int, regions: int, capacity: int) -> None:
    layout = RegionFormat(elements, regions, capacity, wire)
    given = entries(layout, 3)
    rows = np.full((regions, layout.nbytes), 0xAA, np.uint8)
    told = layout.encode(kernels.get(), given, rows)
    found = layout.decode(kernels.get(), rows)
    np.testing.assert_array_equal(found.rows, given.rows)
    np.testing.assert_array_equal(found.positions, given.positions)
    np.testing.assert_array_equal(found.values, told)
    if wire == "float32":
        np.testing.assert_array_equal(told, given.values)
    np.testing.assert_allclose(told, given.values, rtol=0.1, atol=0.1)


def test_size_by_the_documented_formula() -> None:
    assert RegionFormat(1600, 10, 5).nbytes == 4 + 12 + 20
    assert RegionFormat(1600, 10, 5, "float16").nbytes == 4 + 12 + 12
    assert RegionFormat(1600, 10, 5, "range8").nbytes == 4 + 16 + 12 + 8
    assert RegionFormat(200_000, 1, 70_000).nbytes == 4 * 4 + 140_000 + 280_000


def damaged(change: int, value: int) -> np.ndarray:
    layout = RegionFormat(1600, 2, 4)
    rows = np.zeros((2, layout.nbytes), np.uint8)
    given = Entries(np.array([0, 0, 1]), np.array([3, 9, 5]), np.ones(3, np.float32))
    layout.encode(kernels.get(), given, rows)
    rows[0, change] = value
    return rows


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        (0, 5, "5 entries, more than its capacity 4"),
        (6, 3, "must ascend"),
        (7, 4, "lie in its region"),
        (15, 0x7F, "not finite"),
    ],
    ids=["count", "order", "range", "value"],
)
def test_damage_is_refused(change: int, value: int, message: str) -> None:
    rows = damaged(change, value)
    if message == "not finite":
        rows[0, 12:16] = np.frombuffer(np.float32(np.inf).tobytes(), np.uint8)
    with pytest.raises(CorruptPayload, match=message):
        RegionFormat(1600, 2, 4).decode(kernels.get(), rows)
    with pytest.raises(CorruptPayload, match="beyond the 1600 elements"):
        RegionFormat(1600, 3, 4).indices(2, np.array([528]))
    with pytest.raises(CorruptPayload, match="shape"):
        RegionFormat(1600, 2, 4).decode(kernels.get(), rows[:, 1:])
