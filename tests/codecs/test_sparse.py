import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import CorruptPayload, kernels
from hvd_compress.codecs import header
from hvd_compress.codecs.sparse import SparseFormat
from tests import wire


@pytest.mark.parametrize("wire_type", wire.WIRES)
@pytest.mark.parametrize("capacity", [8, 16, 65528, 65536, 80000])
@pytest.mark.parametrize("elements", [1, 65536, 65537, 262144, 10_000_019])
def test_size(elements: int, capacity: int, wire_type: str) -> None:
    """6 bytes an entry, or 4; plus 2 (or 4) a block, padded to 8; plus 16."""
    layout = SparseFormat(elements, capacity, wire_type)
    assert layout.nbytes == wire.nbytes(elements, capacity, wire_type)
    assert layout.nbytes % 8 == 0


@pytest.mark.parametrize("capacity", [0, -8, 4, 12, 1])
def test_capacity_is_a_multiple_of_eight(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"capacity must be a positive multiple of 8, got {capacity}"):
        SparseFormat(100, capacity)


def test_unknown_wire() -> None:
    with pytest.raises(ValueError, match=r"wire must be one of .*'float8'"):
        SparseFormat(100, 8, "float8")


@given(
    elements=st.sampled_from([1, 9, 1000, 65536, 65537, 200_000]),
    fraction=st.floats(0, 1),
    wire_type=st.sampled_from(wire.WIRES),
    workers=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_round_trip(elements: int, fraction: float, wire_type: str, workers: int, seed: int) -> None:
    """Encode, read with the tests' own reader, decode: the same numbers; what was rounded off is in the memory."""
    rng = np.random.default_rng(seed)
    capacity = -(-max(1, min(elements, 3000)) // 8) * 8
    layout = SparseFormat(elements, capacity, wire_type)
    rows = np.empty((workers, layout.nbytes), np.uint8)
    expected = np.zeros(elements, np.float32)
    scale = np.float32(1 / workers)
    for row in rows:
        n = round(fraction * min(elements, capacity))
        indices = np.sort(rng.choice(elements, n, replace=False)).astype(np.uint32)
        values = rng.standard_normal(n).astype(np.float32)
        memory = np.full(elements, 7, np.float32)
        layout.encode(kernels.get(), indices, values, memory, row)
        fields, entries = wire.read(row.tobytes())
        assert list(entries) == indices.tolist()
        assert fields == {
            "version": 1, "codec": wire.WIRES.index(wire_type), "flags": 0, "count": n, "elements": elements,
            "capacity": capacity,
        }  # fmt: skip
        decoded = np.array(list(entries.values()), np.float32)
        if wire_type == "float32":
            assert (memory == 7).all()
        else:
            np.testing.assert_array_equal(memory[indices], values - decoded)
            assert (np.delete(memory, indices) == 7).all()
        expected[indices] += decoded * scale
    out = np.full(elements, np.nan, np.float32)
    assert layout.decode(kernels.get(), rows, 1 / workers, out) is out
    np.testing.assert_array_equal(out, expected)


def test_flags() -> None:
    rows = np.zeros((3, 16), np.uint8)
    for row in rows:
        header.write(row, codec=header.SPARSE, count=1, elements=2, capacity=8)
    assert header.flags(rows) == 0
    header.set_flags(rows[1], 0x0102)
    assert rows[1].tobytes() == bytes([1, 0, 2, 1, 1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0])
    header.set_flags(rows[2], header.NONFINITE)
    assert header.flags(rows) == 0x0103
    header.set_flags(rows[1], 0)
    assert header.flags(rows) == 1
    np.testing.assert_array_equal(header.check(rows, codec=0, elements=2, capacity=8), [1, 1, 1])


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (0, "worker 1: version is 255, expected 1"),
        (1, "worker 1: codec is 255, expected 0"),
        (4, "worker 1: 255 entries exceed its capacity 8"),
        (8, "worker 1: elements is 255, expected 20"),
        (12, "worker 1: capacity is 255, expected 8"),
    ],
)
def test_messages(offset: int, message: str) -> None:
    layout = SparseFormat(20, 8)
    rows = np.zeros((2, layout.nbytes), np.uint8)
    for row in rows:
        layout.encode(kernels.get(), np.zeros(0, np.uint32), np.zeros(0, np.float32), None, row)
    rows[1, offset] = 255
    with pytest.raises(CorruptPayload, match=message):
        layout.decode(kernels.get(), rows, 1.0, np.zeros(20, np.float32))


def test_shorter_than_a_header() -> None:
    with pytest.raises(CorruptPayload, match="5 bytes is shorter"):
        header.check(np.zeros((1, 5), np.uint8), codec=0, elements=1, capacity=8)


def test_a_payload_that_is_sent_twice_may_carry_flags() -> None:
    """An exchange may gather one payload again, in which the driver has set flags the first time."""
    payload = np.full(header.NBYTES, 7, np.uint8)
    assert not header.begins(payload)
    header.write(payload, codec=header.CUSTOM, count=0, elements=1, capacity=0)
    for flags in range(8):
        header.set_flags(payload, flags)
        assert header.begins(payload)
    header.set_flags(payload, 8)
    assert not header.begins(payload)
