"""Innovations: back and forth, the shorter of bitmap and list, and damage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import CorruptPayload
from hvd_compress.codecs.innovations import InnovationFormat


def encoded(layout: InnovationFormat, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A payload, and the vector whose entries it has."""
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(layout.length, layout.count, replace=False))
    vector = np.zeros(layout.length, np.float32)
    vector[places] = rng.standard_normal(layout.count).astype(np.float16)
    payload = np.full(layout.nbytes, 0xAA, np.uint8)
    layout.encode(places, vector[places], payload)
    return payload, vector


@given(data=st.data(), length=st.one_of(st.integers(1, 600), st.integers(65_530, 65_545)))
def test_round_trip(data: st.DataObject, length: int) -> None:
    layout = InnovationFormat(length, data.draw(st.integers(1, min(length, 600))))
    rows = [encoded(layout, seed) for seed in range(3)]
    found = layout.decode(np.stack([payload for payload, _ in rows]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([vector for _, vector in rows]))


@pytest.mark.parametrize(
    ("length", "count", "places"),
    [
        (400, 40, 52),  # 50 bytes of bits, 80 of a list
        (400, 8, 16),
        (31, 31, 4),
        (640, 40, 80),  # as long, a bitmap
        (65_536, 10, 20),
        (65_537, 10, 40),
        (70_000, 35_000, 8752),
    ],
)
def test_the_shorter_of_bitmap_and_list(length: int, count: int, places: int) -> None:
    assert InnovationFormat(length, count).nbytes == places + 2 * count


@pytest.mark.parametrize(("length", "count"), [(397, 40), (397, 8), (70_000, 4)])
def test_damage_is_noticed(length: int, count: int) -> None:
    """Flipping one bit gives another vector with as many entries, or is refused."""
    layout = InnovationFormat(length, count)
    payload, vector = encoded(layout)
    outcomes = set()
    for bit in range(8 * layout.nbytes):
        damaged = payload.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            (found,) = layout.decode(damaged[None])
        except CorruptPayload:
            outcomes.add("refused")
        else:
            assert np.isfinite(found).all()
            assert np.count_nonzero(found) >= count - 1  # a value may have become zero
            outcomes.add("same" if np.array_equal(found, vector) else "other")
    assert {"refused", "other"} <= outcomes


@pytest.mark.parametrize("count", [40, 8])
def test_places_that_cannot_be(count: int) -> None:
    layout = InnovationFormat(397, count)
    rows = np.stack([encoded(layout)[0] for _ in range(2)])
    rows[1, : layout.nbytes - 2 * count] = 255
    with pytest.raises(CorruptPayload, match="vector's 397 entries"):
        layout.decode(rows)


def test_a_place_that_comes_twice() -> None:
    layout = InnovationFormat(397, 8)
    payload, _ = encoded(layout)
    payload[2:4] = payload[:2]
    with pytest.raises(CorruptPayload, match="places do not ascend"):
        layout.decode(payload[None])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [40, 8])
def test_values_that_are_not_finite(count: int, value: float) -> None:
    layout = InnovationFormat(397, count)
    payload, _ = encoded(layout)
    payload[-2:].view(np.float16)[0] = value
    with pytest.raises(CorruptPayload, match="not finite"):
        layout.decode(payload[None])


def test_wrong_shapes() -> None:
    layout = InnovationFormat(397, 40)
    payload, _ = encoded(layout)
    for wrong in (payload, payload[None, :-1], np.zeros((2, layout.nbytes + 4), np.uint8)):
        with pytest.raises(CorruptPayload, match="shape"):
            layout.decode(wrong)


@pytest.mark.parametrize(("length", "count"), [(10, 11), (10, 0), (0, 0)])
def test_formats_that_cannot_be(length: int, count: int) -> None:
    with pytest.raises(ValueError, match="count must be"):
        InnovationFormat(length, count)
