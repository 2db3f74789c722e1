"""Pairs of a spectrum: the kernel sets agree to the last bit, on what is selected and on which payloads are corrupt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hvd_compress import CorruptPayload
from hvd_compress.kernels import Sections, workspace
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import VALUES, same

many = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COUNTS = st.sampled_from([0, 1, 7, 8, 15, 31, 32, 33, 63, 64, 65, 100, 8191, 8193, 30_000, 66_000])


def draw(n, values, seed):
    with np.errstate(all="ignore"):
        return VALUES[values](np.random.default_rng(seed), 2 * n).astype(np.float32)


@many
@given(
    n=COUNTS, values=st.sampled_from(sorted(VALUES)), seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1.0, 2.0**40, 2.0**-60]), threshold=st.sampled_from([0.0, 0.5, 3.0, 1e38, np.inf]),
    share=st.floats(0, 1.1),
)  # fmt: skip
@example(n=66_000, values="normal", seed=1, scale=1.0, threshold=0.0, share=0.1)
@example(n=66_000, values="ties", seed=1, scale=1.0, threshold=0.0, share=0.3)
def test_select(host, n, values, seed, scale, threshold, share):
    pairs, capacity = draw(n, values, seed), int(share**3 * n)
    results = []
    for kernels in (host, REFERENCE):
        indices, energies = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
        s = kernels.select_pairs(pairs, scale, threshold, capacity, indices, energies)
        indices = indices[: s.kept].copy()
        gathered = np.empty(2 * s.kept, np.float32)
        ends = kernels.gather_pairs(pairs, indices, gathered)
        bitmap = np.full(-(-n // 8) + 3, 255, np.uint8)
        kernels.mark(indices, bitmap)
        results.append((s, indices, energies[: s.kept].copy(), gathered, ends, bitmap))
    same(*results)


class Rows:
    """Random payloads of pairs."""

    def __init__(self, seed, n, rows, bits, count_bytes):
        rng = np.random.default_rng(seed)
        self.pairs, self.bits, self.count_bytes = n, bits, count_bytes
        self.capacity = max(1, n // 5)
        blocks = -(-n // 65_536)
        self.places_at = 8 + 8 * blocks
        self.codes_at = self.places_at + (2 * self.capacity if count_bytes else -(-n // 64) * 8)
        self.payloads = np.zeros((rows, self.codes_at + -(-2 * self.capacity * bits // 8)), np.uint8)
        self.entries = rng.integers(0, min(n, self.capacity) + 1, rows).astype(np.uint32)
        self.tables = [rng.standard_normal(rng.integers(1, 2**bits + 1)).astype(np.float32) for _ in range(rows)]
        for row, k, table in zip(self.payloads, self.entries, self.tables, strict=True):
            indices = np.sort(rng.choice(n, k, replace=False)).astype(np.uint32)
            if count_bytes:
                counts = row[8:][: blocks * count_bytes].view(f"<u{count_bytes}")
                counts[:] = np.bincount(indices >> 16, minlength=blocks)
                row[self.places_at :][: 2 * k].view("<u2")[:] = indices & 0xFFFF
            else:
                bits_set = np.zeros(-(-n // 64) * 64, np.uint8)
                bits_set[indices] = 1
                row[self.places_at : self.codes_at] = np.packbits(bits_set, bitorder="little")
            codes = rng.integers(0, len(table), 2 * k)
            packed = np.packbits((codes[:, None] >> np.arange(bits)) & 1, bitorder="little")
            row[self.codes_at :][: len(packed)] = packed

    @property
    def sections(self):
        return Sections(8, self.places_at, self.codes_at, self.count_bytes, self.capacity, self.bits)

    def sum(self, kernels, block=16, minuend=False):
        """Data of the whole blocks and spectrum of the rest, or None if a payload is corrupt."""
        whole = 2 * self.pairs // block * block
        out, rest = kernels.empty(whole), np.full(2 * self.pairs - whole, 7, np.float32)
        out[:] = 7
        try:
            kernels.synthesize(
                self.payloads, self.sections, self.entries, self.tables, block, 0.3, out if minuend else None, out, rest
            )
        except CorruptPayload:
            assert (out == 7).all()
            assert (rest == 7).all()
            return None
        return out, rest


formats = {
    "seed": st.integers(0, 2**32 - 1), "n": COUNTS.filter(bool), "rows": st.integers(1, 4),
    "bits": st.integers(4, 16), "count_bytes": st.sampled_from([0, 2, 4]),
}  # fmt: skip


@many
@given(**formats, block=st.sampled_from([16, 64, 4096, 65_536]), minuend=st.booleans())
def test_synthesize(host, seed, n, rows, bits, count_bytes, block, minuend):
    payloads = Rows(seed, n, rows, bits, count_bytes)
    expected = payloads.sum(REFERENCE, block, minuend)
    assert expected is not None
    same(payloads.sum(host, block, minuend), expected)


@pytest.mark.parametrize("count_bytes", [0, 4])
def test_synthesize_where_stores_stream(host, count_bytes):
    payloads = Rows(1, 1_000_001, 2, 8, count_bytes)
    same(payloads.sum(host, 1024), payloads.sum(REFERENCE, 1024))


def test_corrupt(host):
    """Thousands of damaged payloads: both sets refuse the same ones, and agree on the others."""
    rng = np.random.default_rng(3)
    refused = 0
    for case in range(3000):
        payloads = Rows(case, int(rng.choice([5, 64, 100, 400, 66_000] if case % 50 == 0 else [5, 64, 100, 400])),
                        2, int(rng.integers(4, 17)), int(rng.choice([0, 2, 4])))  # fmt: skip
        flat = payloads.payloads.reshape(-1)
        for _ in range(rng.integers(1, 3)):
            flat[rng.integers(len(flat))] ^= 1 << rng.integers(8)
        if case % 5 == 0:
            payloads.entries[rng.integers(2)] = rng.choice([0, 1, payloads.capacity, payloads.capacity + 1, 2**32 - 1])
        result, expected = payloads.sum(host), payloads.sum(REFERENCE)
        assert (result is None) == (expected is None), case
        if result is None:
            refused += 1
        else:
            same(result, expected)
    assert 500 < refused < 2500


def test_refused(kernels):
    pairs, energies = np.zeros(20, np.float32), np.zeros(workspace(4), np.float32)
    indices = np.zeros(workspace(4), np.uint32)
    for arguments, message in (
        ((pairs, 1.0, -1.0, 4, indices, energies), "threshold"),
        ((pairs, 1.0, 0.0, -1, indices, energies), "capacity"),
        ((pairs, 1.0, 0.0, 5, indices, energies), "indices and energies need 4106"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.select_pairs(*arguments)
    with pytest.raises(ValueError, match="below 10"):
        kernels.gather_pairs(pairs, np.array([10], np.uint32), pairs[:2])
    with pytest.raises(ValueError, match="values has 3 elements, not 2"):
        kernels.gather_pairs(pairs, np.array([1], np.uint32), pairs[:3])
    for wrong in ([16], [3, 3], [3, 2]):
        with pytest.raises(ValueError, match="ascend strictly and be below 16"):
            kernels.mark(np.array(wrong, np.uint32), np.zeros(2, np.uint8))
    good = Rows(0, 100, 2, 8, 2)
    assert good.sum(kernels) is not None
    for name, value in (("places_at", 1000), ("codes_at", -1), ("codes_at", 1000), ("capacity", 1000)):
        bad = Rows(0, 100, 2, 8, 2)
        setattr(bad, name, value)
        with pytest.raises(ValueError, match=r"exceed|capacity") as caught:
            bad.sum(kernels)
        assert not isinstance(caught.value, CorruptPayload)
    bad.entries, bad.capacity = bad.entries[:1], good.capacity
    with pytest.raises(ValueError, match="entries"):
        bad.sum(kernels)
