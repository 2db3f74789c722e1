"""What the kernels compute, against NumPy, exact sums, torch and ml_dtypes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hvd_compress.kernels import BLOCK, CorruptPayload, Selection, hash32, workspace
from tests.kernels.buckets import NOT_FINITE, VALUES, Layout, make_bucket, same, select

KINDS = sorted(VALUES)


@pytest.mark.parametrize("values", KINDS)
def test_moments_are_those_of_float64_sums(kernels, values):
    bucket = make_bucket(1, 10_007, values, cuts=[0.2, 0.9])
    out = kernels.empty(bucket.d)
    assert kernels.add(bucket.memory, bucket.pieces, out)
    same(out, bucket.a)
    m = kernels.sample(bucket.memory, bucket.pieces, 1, bucket.d, out)
    a = np.abs(bucket.a).astype(np.float64)
    same(out, np.abs(bucket.a))
    assert m.count == bucket.d
    assert m.total == pytest.approx(math.fsum(a), rel=1e-12)
    assert m.squares == pytest.approx(math.fsum(a * a), rel=1e-12)
    assert m.largest == a.max()
    assert m.finite


def test_denormals_of_a_memory_are_zero(kernels):
    """Whatever reads it beside a gradient; the gradient's own, and those of values without one, stay."""
    tiny = np.float32(2.0**-126)
    below, least = np.nextafter(tiny, np.float32(0)), np.float32(2.0**-149)
    memory = np.tile(np.array([tiny, -tiny, below, -below, least, -least, 0, -0.0], np.float32), 10)
    gradient = np.tile(np.array([least, 0, 0, least, 0, -0.0, -least, -0.0], np.float32), 10)
    expected = np.tile(np.array([tiny + least, -tiny, 0, least, 0, 0, -least, 0], np.float32), 10)
    out, sampled = kernels.empty(80), np.empty(80, np.float32)
    assert kernels.add(memory, [gradient[:33], gradient[33:]], out)
    same(out, expected)
    total = kernels.sample(memory, [gradient[:33], gradient[33:]], 1, 5, sampled).total
    assert total == np.abs(expected).astype(np.float64).sum()
    same(sampled, np.abs(expected))
    kernels.sample(memory, [gradient], 1, 4, sampled)
    assert set(sampled[:64]) <= set(np.abs(expected))
    indices, values = np.empty(workspace(80), np.uint32), np.empty(workspace(80), np.float32)
    selection = kernels.select(memory, [gradient], out, 0.0, 80, indices, values)
    same(values[: selection.kept], expected[expected != 0])
    kernels.add(memory, [], out)
    same(out, memory)
    momentum, velocity = np.empty(80, np.float32), np.empty(80, np.float32)
    kernels.add_momentum(memory, memory, [gradient], 0.5, False, momentum, velocity)
    flushed = np.where(np.abs(memory) < tiny, np.float32(0), memory)
    same(momentum, np.float32(0.5) * flushed + gradient)
    same(velocity, flushed + momentum)


@pytest.mark.parametrize("bad", sorted(NOT_FINITE))
@pytest.mark.parametrize("capacity", [0, 3, 500])
@pytest.mark.parametrize("threshold", [0.0, 1.0, float("inf")])
def test_what_is_not_finite_is_found(kernels, bad, capacity, threshold):
    bucket = make_bucket(2, 70_000, bad=bad, cuts=[0.5])
    out = kernels.empty(bucket.d)
    assert not kernels.add(bucket.memory, bucket.pieces, out)
    assert select(kernels, bucket, threshold, capacity)[0] == Selection(0, 0, False)


def test_momentum(kernels):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    u, v, g = rng.standard_normal((3, 1001), dtype=np.float32)
    u_out, v_out = np.empty_like(u), np.empty_like(v)
    assert kernels.add_momentum(u, v, [g[:10], g[10:]], 0.9, False, u_out, v_out)
    expected = torch.from_numpy(u).mul(0.9) + torch.from_numpy(g)
    same(u_out, expected.numpy())
    same(v_out, (torch.from_numpy(v) + expected).numpy())
    assert kernels.add_momentum(u, v, [g[:10], g[10:]], 0.9, True, u_out, v_out)
    same(u_out, expected.numpy())
    same(v_out, (torch.from_numpy(v) + (expected.mul(0.9) + torch.from_numpy(g))).numpy())
    v[77] = np.inf
    assert not kernels.add_momentum(u, v, [g], 0.9, False, u, v)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_that_would_overflow_later(kernels, beta, nesterov):
    """What passes stays finite for as long as nothing is sent, and what is far from overflowing passes."""
    for exponent in np.linspace(110, 127.99, 60):
        u, v = np.zeros(40, np.float32), np.zeros(40, np.float32)
        g = np.zeros(40, np.float32)
        g[33] = -np.float32(2.0**exponent)
        reached = 2.0**exponent / (1 - beta)
        passes = kernels.add_momentum(u, v, [g], beta, nesterov, u, v)
        assert passes == (reached < 1.5 * 2.0**127) or reached == pytest.approx(1.5 * 2.0**127, rel=1e-4)
        if passes:
            small = np.ones(40, np.float32)
            for _ in range(300):
                kernels.add_momentum(u, v, [small], beta, nesterov, u, v)
            assert np.isfinite(v).all()


def test_sample_takes_one_line_of_each_stratum(kernels):
    d, lines = 16 * 1000 + 5, 70
    x = np.arange(d, dtype=np.float32)
    out = np.empty(16 * lines, np.float32)
    m = kernels.sample(None, [x[:333], x[333:]], 99, lines, out)
    assert m.count == 16 * lines
    taken = out.reshape(lines, 16)
    first = (taken[:, 0] / 16).astype(int)
    np.testing.assert_array_equal(taken, first[:, None] * 16 + np.arange(16))
    low = np.arange(lines + 1) * 1000 // lines
    assert ((low[:-1] <= first) & (first < low[1:])).all()
    again = np.empty_like(out)
    kernels.sample(None, [x], 99, lines, again)
    same(out, again)
    kernels.sample(None, [x], 100, lines, again)
    assert (out != again).any()


def test_sample_is_unbiased(kernels):
    x = np.random.default_rng(0).standard_exponential(16 * 500, dtype=np.float32)
    out = np.empty(16 * 10, np.float32)
    means = [kernels.sample(x, [], key, 10, out).total / 160 for key in range(400)]
    assert np.mean(means) == pytest.approx(x.mean(), abs=4 * np.std(means) / 20)


def test_hash_is_splitmix64():
    """The first outputs of SplitMix64 seeded with 0, as published with the generator."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    same(hash32(0, np.arange(3, dtype=np.uint64)), np.array([e >> 32 for e in expected], np.uint64))


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.7, 2.0, float("inf")])
def test_exceedances(kernels, values, threshold):
    x = np.abs(make_bucket(3, 4111, values).a)
    out = np.empty_like(x)
    m = kernels.exceedances(x, threshold, out)
    above = x[x > np.float32(threshold)]
    same(out[: m.count], above)
    excess = above.astype(np.float64) - np.float64(np.float32(threshold))
    assert m.total == pytest.approx(math.fsum(excess), rel=1e-12)
    assert m.squares == pytest.approx(math.fsum(excess * excess), rel=1e-12)
    assert m.largest == np.float32(excess.max(initial=0))


@pytest.mark.parametrize("values", KINDS)
def test_log_sum(kernels, values):
    x = np.abs(make_bucket(4, 20_011, values).a)
    positive = x[x > 0].astype(np.float64)
    count, total = kernels.log_sum(x)
    assert count == len(positive)
    assert total == pytest.approx(math.fsum(np.log(positive)), rel=1e-11, abs=1e-8)


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("d", [1, 100, 5000, 100_000])
def test_kth_largest(kernels, values, d):
    x = np.abs(make_bucket(5, d, values).a)
    descending = np.sort(x)[::-1]
    for k in {1, d, (d + 1) // 2, d // 9 + 1, d // 1000 + 1}:
        assert kernels.kth_largest(x, k) == descending[k - 1]


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.5])
@pytest.mark.parametrize("d", [63, 10_000, BLOCK + 1000])
def test_select_is_a_stable_sort(kernels, values, threshold, d):
    bucket = make_bucket(6, d, values, cuts=[0.1, 0.4])
    a = bucket.a
    for capacity in (0, 1, d // 1000 + 1, d // 7, d + 5):
        s, out, indices, kept = select(kernels, bucket, threshold, capacity)
        found = np.flatnonzero(np.abs(a) > threshold)
        expected = np.sort(found[np.lexsort((found, -np.abs(a[found]).astype(np.float64)))][:capacity])
        assert s == (len(found), len(expected), True)
        np.testing.assert_array_equal(indices, expected)
        same(kept, a[indices])
        left = a.copy()
        left[indices] = 0
        same(out, left)
        kernels.restore(out, indices, kept)
        same(out, a)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 5000])
def test_take_and_restore_in_any_order(kernels, n):
    rng = np.random.default_rng(n)
    values = rng.standard_normal(6000).astype(np.float32)
    indices = rng.permutation(6000)[:n].astype(np.uint32)
    out = np.empty(n, np.float32)
    kernels.take(values, indices, out)
    same(out, values[indices])
    expected = values.copy()
    expected[indices] = -out
    kernels.restore(values, indices, -out)
    same(values, expected)


def test_select_is_topk(kernels):
    torch = pytest.importorskip("torch")
    bucket = make_bucket(7, 150_000, "heavy tails", memory=False)
    s, _, indices, values = select(kernels, bucket, 0.0, 1500)
    magnitudes, where = torch.from_numpy(np.abs(bucket.a)).topk(1500)
    assert s.kept == 1500
    np.testing.assert_array_equal(indices, np.sort(where.numpy()))
    np.testing.assert_array_equal(np.sort(np.abs(values)), np.sort(magnitudes.numpy()))


def test_select_of_nothing(kernels):
    """No memory and no pieces: zeros."""
    out = np.ones(100, np.float32)
    s = kernels.select(None, [], out, 0.0, 5, np.empty(workspace(5), np.uint32), np.empty(workspace(5), np.float32))
    assert s == (0, 0, True)
    assert not out.any()


@pytest.mark.parametrize("wire", [1, 2])
def test_narrow(kernels, wire):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    torch = pytest.importorskip("torch")
    bits = np.concatenate(
        [
            np.arange(0, 2**32, 2**12 - 1, dtype=np.uint64).astype(np.uint32),
            np.arange(0, 2**32, 2**12, dtype=np.uint64).astype(np.uint32),  # every tie, and every exact value
        ]
    )
    x = bits.view(np.float32)
    words = np.empty(len(x), np.uint16)
    kernels.narrow(x, wire, words)
    with np.errstate(all="ignore"):
        numpy_words = x.astype(ml_dtypes.bfloat16 if wire == 1 else np.float16).view(np.uint16)
    torch_words = torch.from_numpy(x).to(torch.bfloat16 if wire == 1 else torch.float16).view(torch.int16).numpy()
    nan = np.isnan(x)
    np.testing.assert_array_equal(words[~nan], numpy_words[~nan])
    np.testing.assert_array_equal(words[~nan], torch_words[~nan].view(np.uint16))
    infinity, quiet = (0x7F80, 0x40) if wire == 1 else (0x7C00, 0x200)
    assert ((words[nan] & 0x7FFF) > infinity).all()
    assert (words[nan] & quiet).all()
    np.testing.assert_array_equal(words[nan] >> 15, bits[nan] >> 31)


@pytest.mark.parametrize("wire", [1, 2])
def test_accumulate_dense(kernels, wire):
    torch = pytest.importorskip("torch")
    words = np.arange(3 * 65_536, dtype=np.uint32).astype(np.uint16).reshape(3, 65_536)
    words[1:] = np.random.default_rng(0).integers(0, 2**16, (2, 65_536), np.uint16)
    out = np.empty(65_536, np.float32)
    kernels.accumulate_dense(words, wire, 0.25, out)
    rows = torch.from_numpy(words.view(np.int16)).view(torch.bfloat16 if wire == 1 else torch.float16).float() * 0.25
    same(out, ((torch.zeros(65_536) + rows[0]) + rows[1] + rows[2]).numpy())


@pytest.mark.parametrize("d", [1, 67, 2_000_003])  # the last is beyond what the caches hold
@pytest.mark.parametrize("wire", [1, 2])
def test_accumulate_dense_tells_what_is_not_finite_wherever_it_is(kernels, wire, d):
    infinity = 0x7F80 if wire == 1 else 0x7C00
    words, out = np.full((2, d), infinity - 1, np.uint16), kernels.empty(d)
    assert kernels.accumulate_dense(words, wire, 0.5, out)
    for place in {0, d // 2, d - 1}:
        for bits in (infinity, infinity + 1, 0x8000 | infinity, 0xFFFF):
            words[1, place] = bits
            assert not kernels.accumulate_dense(words, wire, 0.5, out)
        words[1, place] = 0


@pytest.mark.parametrize("wire", [0, 1, 2])
@pytest.mark.parametrize("values", ["normal", "extreme", "denormals", "ties"])
def test_what_is_sent_and_what_stays_add_up(kernels, wire, values):
    bucket = make_bucket(8, 3 * BLOCK + 77, values)
    s, memory, indices, kept = select(kernels, bucket, 0.0, 3000)
    layout = Layout(bucket.d, 3000, wire, 2)
    payload = layout.pack(kernels, indices, kept, memory)
    decoded = layout.accumulate(kernels, payload[None], [s.kept])
    assert np.isfinite(decoded).all()
    if values == "extreme":  # float16 cannot hold these: what is beyond its range stays too
        np.testing.assert_allclose(decoded.astype(np.float64) + memory, bucket.a, rtol=1e-6)
    else:
        same(decoded + memory + 0.0, bucket.a + 0.0)  # exact: a rounding error fits a float32


def test_accumulate_adds_in_order(kernels):
    layout = Layout(20, 20, 0, 2)
    every = np.arange(20, dtype=np.uint32)
    terms = np.array([1e8, 1.0, -1e8, 3e-3], np.float32)
    payloads = np.stack([layout.pack(kernels, every, np.full(20, t, np.float32)) for t in terms])
    expected = np.float32(0)
    for t in terms:
        expected = np.float32(expected + np.float32(t * np.float32(0.3)))
    assert (layout.accumulate(kernels, payloads, [20] * 4, 0.3) == expected).all()


def test_a_full_block_needs_wide_counts(kernels):
    d = BLOCK + 10
    indices, values = np.arange(d, dtype=np.uint32), np.ones(d, np.float32)
    wide = Layout(d, d, 0, 4)
    out = wide.accumulate(kernels, wide.pack(kernels, indices, values)[None], [d], 2.0)
    assert (out == 2).all()
    with pytest.raises(ValueError, match="uint16"):
        Layout(d, d, 0, 2).pack(kernels, indices, values)


def test_a_corrupt_payload_is_named(kernels):
    layout = Layout(3 * BLOCK, 10, 0, 2)
    indices = np.array([5, BLOCK + 3, 2 * BLOCK + 9], np.uint32)
    good = layout.pack(kernels, indices, np.ones(3, np.float32))
    bad = good.copy()
    bad[layout.at[0]] = 200
    with pytest.raises(CorruptPayload, match="payload 1"):
        layout.accumulate(kernels, np.stack([good, bad]), [3, 3], 1.0, np.empty(layout.d, np.float32))


def test_empty_is_aligned(kernels):
    for n in (0, 1, 1000, 2_000_000):
        x = kernels.empty(n)
        assert x.dtype == np.float32
        assert x.shape == (n,)
        assert x.flags.writeable
        if kernels.name == "host":
            assert x.ctypes.data % (2**21 if n > 2**19 else 64) == 0
