"""Sets of indices: back and forth, sizes that depend on nothing but the format, and damage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import CorruptPayload
from hvd_compress.codecs.index_set import IndexSetFormat


@given(data=st.data(), elements=st.integers(1, 5000))
def test_round_trip(data: st.DataObject, elements: int) -> None:
    capacity = data.draw(st.integers(1, elements))
    chosen = data.draw(st.sets(st.integers(0, elements - 1), max_size=capacity))
    indices = np.array(sorted(chosen), np.uint32)
    values = np.random.default_rng(len(chosen)).standard_normal(len(indices)).astype(np.float32)
    sent = {}
    for with_signs in (True, False):
        layout = IndexSetFormat(elements, capacity, with_signs)
        payload = np.full(layout.nbytes, 255, np.uint8)
        layout.encode(indices, values, 0.375, payload)
        found, signs, number = layout.decode(payload)
        np.testing.assert_array_equal(found, indices)
        np.testing.assert_array_equal(signs, np.where((values < 0) & with_signs, -1, 1))
        assert number == 0.375
        sent[with_signs] = payload.tobytes()
    assert sent[True][: len(sent[False])] == sent[False]
    assert len(sent[True]) - len(sent[False]) == -(-capacity // 8)


@pytest.mark.parametrize("one_in", [1, 10, 100, 1000, 5000])
def test_bits_an_index(one_in: int) -> None:
    """The bound of Elias and Fano, and a bit for the sign."""
    elements = 1_000_000
    capacity = elements // one_in
    bits = 8 * (IndexSetFormat(elements, capacity).nbytes - 8 - 4) / capacity
    assert bits <= math.log2(one_in) + 2 + 1


def test_large_indices() -> None:
    layout = IndexSetFormat(2**32, 100)
    indices = np.array([0, 2**31, 2**32 - 1], np.uint32)
    payload = np.zeros(layout.nbytes, np.uint8)
    layout.encode(indices, np.ones(3, np.float32), 1, payload)
    np.testing.assert_array_equal(layout.decode(payload)[0], indices)


def test_damage_is_noticed() -> None:
    """No bit that is flipped leads to an index out of bounds, or to one twice."""
    layout = IndexSetFormat(1000, 20)
    indices = np.sort(np.random.default_rng(0).choice(1000, 20, replace=False)).astype(np.uint32)
    payload = np.zeros(layout.nbytes, np.uint8)
    layout.encode(indices, np.ones(20, np.float32), 1, payload)
    refused = 0
    for bit in range(8 * layout.nbytes):
        damaged = payload.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = layout.decode(damaged)[0].astype(np.int64)
        except CorruptPayload:
            refused += 1
        else:
            assert len(found) == 20
            assert (np.diff(found) > 0).all()
            assert found[-1] < 1000
    assert refused > 50
    for wrong in (payload[:-1], np.zeros(layout.nbytes + 1, np.uint8)):
        with pytest.raises(CorruptPayload, match="shape"):
            layout.decode(wrong)


@pytest.mark.parametrize(("elements", "capacity"), [(10, 11), (10, 0), (2**32 + 1, 5)])
def test_formats_that_cannot_be(elements: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity must be"):
        IndexSetFormat(elements, capacity)
