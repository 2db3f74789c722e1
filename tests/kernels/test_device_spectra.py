"""The device kernels of pairs of a spectrum and of range-based floats give the reference's bytes and sums; transforms
come within the bound that is stated."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import CorruptPayload, packed_bytes, workspace
from hvd_compress.kernels.device.spectra import error_bound
from hvd_compress.kernels.fourier import Transform
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.gradients import gradient
from tests.kernels.buckets import VALUES, same
from tests.kernels.device import DEVICE, KERNELS, DeviceKernels, array, tensor
from tests.kernels.test_fourier import exact
from tests.kernels.test_spectrum import Rows, draw


def relative(x, y):
    """The Euclidean norm of a difference, relative to that of ``y``."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), np.finfo(np.float64).tiny)


@pytest.mark.parametrize(
    ("size", "block"), [(4096 * 3 + 5, 4096), (40, 16), (16, 16), (1, None), (2, None), (777, None)]
)
@pytest.mark.parametrize("distribution", ["normal", "mixed_scales", "one_hot"])
def test_transforms_are_within_the_bound(size, block, distribution, monkeypatch):
    monkeypatch.setattr("hvd_compress.kernels.device.spectra.AT_ONCE", 8192)
    x, scale = gradient(distribution, size, size), 0.3
    device, host = Transform(KERNELS, size, block), Transform(REFERENCE, size, block)
    spectrum, out = KERNELS.empty(2 * device.pairs), KERNELS.empty(size)
    expected, back = np.empty(2 * host.pairs, np.float32), np.empty(size, np.float32)
    device.forward(tensor(x), spectrum)
    host.forward(x, expected)
    bound = error_bound(device.unit)
    assert relative(array(spectrum), expected) <= bound
    assert relative(array(spectrum), exact(x, block)[0]) <= bound / 2
    device.inverse(tensor(expected), scale, None, out)
    host.inverse(expected, scale, None, back)
    assert relative(array(out), back) <= bound
    device.inverse(tensor(expected), scale, tensor(x), out)
    assert relative(array(out), x - back) <= bound * scale / (1 - scale)


def test_what_is_left_of_a_minuend_is_normal():
    x = np.full(64, 2.0**-126, np.float32)
    spectrum, out = KERNELS.empty(64), tensor(x)
    KERNELS.forward(out, 16, spectrum)
    KERNELS.inverse(spectrum, 16, 0.5, out, out)
    assert (array(out) == 0).all()


def test_large_numbers_do_not_overflow():
    spectrum = KERNELS.empty(4096)
    KERNELS.forward(tensor(np.full(4096, 3.4e38, np.float32)), 4096, spectrum)
    assert np.abs(array(spectrum)).max() <= np.float32(3.4e38) * 1.0001


@pytest.mark.parametrize("capacity", [0, 5, 200])
@pytest.mark.parametrize(("values", "scale", "threshold"), [
    ("normal", 1.0, 0.5), ("ties", 2.0**40, 0.0), ("extreme", 1.0, 0.0), ("heavy tails", 2.0**-60, 3.0),
])  # fmt: skip
def test_pairs(values, scale, threshold, capacity):
    pairs, results = draw(150, values, 1), []
    for kernels, where in ((KERNELS, tensor), (REFERENCE, np.array)):
        indices, energies = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
        with np.errstate(over="ignore"):
            s = kernels.select_pairs(where(pairs), scale, threshold, capacity, indices, energies)
        values = kernels.empty(2 * s.kept)
        ends = kernels.gather_pairs(where(pairs), indices[: s.kept], values)
        results.append((s, indices[: s.kept], energies[: s.kept], array(values) if where is tensor else values, ends))
    same(*results)


@pytest.mark.parametrize("key", [None, 2**64 - 3])
@pytest.mark.parametrize("bits", [4, 5, 11, 16])
@pytest.mark.parametrize("values", ["extreme", "one"])
def test_range_encode(values, bits, key):
    x = VALUES[values](np.random.default_rng(bits), 131).astype(np.float32)
    number = RangeFloat(bits, min(3, bits), float(0.4 * x.min()), float(x.max()))
    packed, expected = np.full((2, packed_bytes(131, bits)), 255, np.uint8)
    number.encode(KERNELS, tensor(x), packed, key)
    number.encode(REFERENCE, x, expected, key)
    same(packed, expected)


def synthesized(rows):
    """What is sent through the inverse transform and what is behind it; None if a payload is corrupt."""
    sizes = 2 * rows.pairs // 16 * 16, 2 * rows.pairs % 16
    out, rest = (tensor(np.full(n, 7, np.float32)) for n in sizes)
    try:
        KERNELS.synthesize(rows.payloads, rows.sections, rows.entries, rows.tables, 16, 0.3, None, out, rest)
    except CorruptPayload:
        assert (array(out) == 7).all()
        assert (array(rest) == 7).all()
        return None
    return array(out), array(rest)


@pytest.mark.parametrize("n", [1, 9, 150])
@pytest.mark.parametrize(("bits", "count_bytes"), [(4, 0), (11, 0), (8, 2), (16, 4)])
def test_sums_of_spectra(n, bits, count_bytes):
    """The numbers behind the last whole block are the sum itself; those before it have gone through a transform."""
    rows = Rows(n, n, 3, bits, count_bytes)
    (out, rest), (expected, expected_rest) = synthesized(rows), rows.sum(REFERENCE)
    same(rest, expected_rest)
    assert relative(out, expected) <= error_bound(16)
    sums = KERNELS._summed(rows.payloads, rows.sections, rows.entries, rows.tables, rows.pairs)
    same(array(sums), expected_sum(rows))


def expected_sum(rows):
    """The sum of the spectra, by the reference, for which all are behind the last block."""
    rest = np.empty(2 * rows.pairs, np.float32)
    REFERENCE.synthesize(rows.payloads, rows.sections, rows.entries, rows.tables, 16, 1.0, None, rest[:0], rest)
    return rest


def test_sums_over_several_blocks():
    rows = Rows(3, 66_000, 2, 8, 4)
    rows.entries[:] = 3
    for row in rows.payloads:
        row[8:16].view("<u4")[:] = 2, 1
        row[rows.places_at :][:6].view("<u2")[:] = 5, 65_535, 463
    kernels = DeviceKernels(DEVICE, REFERENCE, tile=8192)
    sums = kernels._summed(rows.payloads, rows.sections, rows.entries, rows.tables, rows.pairs)
    same(array(sums), expected_sum(rows))


@pytest.mark.parametrize("count_bytes", [0, 2])
def test_damaged_payloads(count_bytes):
    """The same ones are refused."""
    refused, rng = 0, np.random.default_rng(5)
    for case in range(30):
        rows = Rows(case, int(rng.choice([64, 100])), 2, 8, count_bytes)
        flat = rows.payloads.reshape(-1)
        flat[rng.integers(len(flat))] ^= 1 << rng.integers(8)
        if case % 5 == 0:
            rows.entries[rng.integers(2)] = rng.choice([0, 1, rows.capacity + 1, 2**32 - 1])
        result, expected = synthesized(rows), rows.sum(REFERENCE)
        assert (result is None) == (expected is None), case
        refused += result is None
    assert 5 < refused < 25


def test_wrong_arguments_are_refused():
    x, few = tensor(np.zeros(64, np.float32)), np.zeros(1, np.uint32)
    for match, call in (
        ("block must be a power of two", lambda: KERNELS.forward(x, 48, x)),
        ("not blocks of 32", lambda: KERNELS.inverse(x[:48], 32, 1.0, None, x[:48])),
        ("minuend has 32 elements", lambda: KERNELS.inverse(x, 32, 1.0, x[:32], x)),
        ("out has 63 elements", lambda: KERNELS.forward_one(x, 64, x[:63])),
        ("spectrum has 63 elements", lambda: KERNELS.inverse_one(x[:63], 64, 1.0, None, x)),
        ("threshold", lambda: KERNELS.select_pairs(x, 1.0, -1.0, 0, few, few.view("f"))),
        ("capacity", lambda: KERNELS.select_pairs(x, 1.0, 0.0, -1, few, few.view("f"))),
        ("indices and energies need", lambda: KERNELS.select_pairs(x, 1.0, 0.0, 1, few, few.view("f"))),
        ("values has 64 elements, not 2", lambda: KERNELS.gather_pairs(x, few, x)),
        ("indices must be below", lambda: KERNELS.gather_pairs(x, few + 32, x[:2])),
        ("out has 3 bytes", lambda: RangeFloat(8, 3, -1.0, 1.0).encode(KERNELS, x, np.zeros(3, np.uint8))),
    ):
        with pytest.raises(ValueError, match=match):
            call()
