"""Payloads are not trusted: whatever bytes come in, decoding raises or gives what the other kernel set gives."""

import numpy as np
import pytest

from hvd_compress import CorruptPayload, kernels
from hvd_compress.codecs.sparse import SparseFormat

CASES = 10_000
LAYOUTS = [
    SparseFormat(elements, capacity, wire)
    for elements, capacity in ((5, 8), (300, 24), (66_000, 40), (140_000, 64))
    for wire in ("float32", "bfloat16", "float16", "range8")
]


def valid(layout: SparseFormat, rng: np.random.Generator) -> np.ndarray:
    """Payloads of 1 to 3 workers."""
    rows = np.empty((rng.integers(1, 4), layout.nbytes), np.uint8)
    for row in rows:
        n = rng.integers(0, min(layout.capacity, layout.elements) + 1)
        indices = np.sort(rng.choice(layout.elements, n, replace=False)).astype(np.uint32)
        layout.encode(kernels.get(), indices, rng.standard_normal(n).astype(np.float32), None, row)
    return rows


def sections(layout: SparseFormat) -> dict[str, slice]:
    blocks = -(-layout.elements // 65536)
    positions = 16 + -(-2 * blocks // 8) * 8
    values = positions + 2 * layout.capacity
    return {
        "header": slice(0, 16),
        "counts": slice(16, 16 + 2 * blocks),
        "positions": slice(positions, values),
        "anywhere": slice(0, layout.nbytes),
    }


def corrupt(layout: SparseFormat, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Damage one of the payloads, in one of several ways."""
    row = rows[rng.integers(len(rows))]
    kind = rng.integers(7)
    if kind == 0:  # bits
        part = row[sections(layout)[rng.choice(list(sections(layout)))]]
        for _ in range(rng.integers(1, 4)):
            part[rng.integers(len(part))] ^= 1 << rng.integers(8)
    elif kind == 1:  # a header field
        row[4:16].view("<u4")[rng.integers(3)] = rng.choice(
            [0, 1, 2, 7, 8, 9, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, layout.capacity, layout.capacity + 1]
        )
    elif kind == 2:  # block counts, the header's count made to agree or not
        counts = row[sections(layout)["counts"]].view("<u2")
        counts[rng.integers(len(counts))] = rng.choice([0, 1, layout.capacity, layout.capacity + 1, 65535])
        if rng.random() < 0.7:
            row[4:8].view("<u4")[0] = counts.sum(dtype=np.int64)
    elif kind == 3:  # entries moved from one block to another
        counts = row[sections(layout)["counts"]].view("<u2")
        a, b = rng.integers(len(counts), size=2)
        moved = rng.integers(0, int(counts[a]) + 1)
        counts[a] -= moved
        counts[b] += moved
    elif kind == 4:  # positions: one changed, two swapped, one doubled
        positions = row[sections(layout)["positions"]].view("<u2")
        a, b = rng.integers(min(len(positions), max(2, row[4])), size=2)
        way = rng.integers(3)
        if way == 0:
            positions[a] = rng.integers(65536)
        elif way == 1:
            positions[a], positions[b] = positions[b], positions[a]
        else:
            positions[a] = positions[b]
    elif kind == 5:  # noise after a valid header
        row[16:] = rng.integers(0, 256, len(row) - 16)
        if rng.random() < 0.5:
            row[4:8].view("<u4")[0] = row[sections(layout)["counts"]].view("<u2").sum(dtype=np.int64)
    else:  # truncated, or too long
        width = int(rng.choice([0, 1, 15, 16, 17, layout.nbytes - 1, layout.nbytes + 1]))
        return np.resize(rows, (len(rows), width)) if width else np.zeros((len(rows), 0), np.uint8)
    return rows


def decode(layout: SparseFormat, name: str, rows: np.ndarray, out: np.ndarray) -> bool:
    """Whether it was decoded."""
    try:
        layout.decode(kernels.get(name), rows, 1 / len(rows), out)
    except CorruptPayload:
        return False
    return True


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_fuzz() -> None:
    rng = np.random.default_rng(20)
    outcomes = {True: 0, False: 0}
    buffers = {layout.elements: np.empty((2, layout.elements), np.float32) for layout in LAYOUTS}
    for case in range(CASES):
        layout = LAYOUTS[case % len(LAYOUTS)]
        rows = corrupt(layout, valid(layout, rng), rng)
        host, reference = buffers[layout.elements]
        good = decode(layout, "host", rows, host)
        outcomes[good] += 1
        if case < CASES // 5 or layout.elements < 1000:
            assert good == decode(layout, "reference", rows, reference), f"kernel sets disagree in case {case}"
            if good:
                np.testing.assert_array_equal(host, reference)
    # the corruptions are neither all harmless nor all obvious
    assert min(outcomes.values()) > CASES / 10


@pytest.mark.parametrize("name", ["host", "reference"])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.wire != "range8"], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(layout: SparseFormat, name: str, value: float) -> None:
    """A worker whose gradients are not finite says so in the flags; its payload is never decoded."""
    rng = np.random.default_rng(3)
    words = {
        "float32": np.array([value], "<f4").view("<u4"),
        "bfloat16": (np.array([value], "<f4").view("<u4") >> 16).astype("<u2"),
        "float16": np.array([value], "<f2").view("<u2"),
    }[layout.wire]
    at = sections(layout)["positions"].stop
    for place in (0, 1, 2, 3, 4):
        rows = np.empty((2, layout.nbytes), np.uint8)
        for row in rows:
            layout.encode(kernels.get(), np.arange(5, dtype=np.uint32), rng.standard_normal(5, np.float32), None, row)
        assert decode(layout, name, rows, np.empty(layout.elements, np.float32))
        rows[1, at:].view(words.dtype)[place] = words[0]
        assert not decode(layout, name, rows, np.empty(layout.elements, np.float32))
        if layout.capacity > 5:  # what no entry uses means nothing
            rows[1, at:].view(words.dtype)[place] = 0
            rows[1, at:].view(words.dtype)[5] = words[0]
            assert decode(layout, name, rows, np.empty(layout.elements, np.float32))


@pytest.mark.parametrize("name", ["host", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_valid_payloads_are_accepted(layout: SparseFormat, name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert decode(layout, name, valid(layout, rng), np.empty(layout.elements, np.float32))
