"""Every instruction set gives the reference's bytes, whatever the values, the pieces, and their alignment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hvd_compress.kernels import workspace
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import Layout, buckets, make_bucket, same, select

# The fixture only says which instruction set to use.
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
thresholds = st.sampled_from([0.0, 1e-45, 0.5, 1.0, 2.0, 3.0, 1e30, float(np.finfo(np.float32).max), float("inf")])
places = st.sampled_from(["apart", "in the memory", "in the pieces"])


def place(kernels, bucket, where):
    """Where ``out`` is: (the bucket, out)."""
    bucket = bucket.copy()
    if where == "in the memory" and bucket.memory is not None:
        return bucket, bucket.memory
    out = kernels.empty(bucket.d)
    if where == "in the pieces":  # every second piece
        begin = 0
        for j, piece in enumerate(bucket.pieces):
            if j % 2 == 0:
                out[begin : begin + len(piece)] = piece
                bucket.pieces[j] = out[begin : begin + len(piece)]
            begin += len(piece)
    return bucket, out


@many
@given(bucket=buckets(), where=places, empty=st.booleans())
def test_add(host, bucket, where, empty):
    if empty:
        bucket.pieces = []
    (b, out), (c, expected) = place(host, bucket, where), place(REFERENCE, bucket, where)
    same(host.add(b.memory, b.pieces, out), REFERENCE.add(c.memory, c.pieces, expected))
    same(out, expected)


@many
@given(
    bucket=buckets(),
    beta=st.sampled_from([0.0, 0.9, 0.5]),
    nesterov=st.booleans(),
    in_place=st.booleans(),
    empty=st.booleans(),
)
def test_add_momentum(host, bucket, beta, nesterov, in_place, empty):
    rng = np.random.default_rng(bucket.d)
    u, v = rng.standard_normal((2, bucket.d), dtype=np.float32)
    pieces = [] if empty else bucket.pieces
    results = []
    for kernels in (host, REFERENCE):
        ui, vi = u.copy(), v.copy()
        uo, vo = (ui, vi) if in_place else (kernels.empty(bucket.d), kernels.empty(bucket.d))
        results.append((kernels.add_momentum(ui, vi, pieces, beta, nesterov, uo, vo), uo, vo))
    same(*results)


@many
@given(bucket=buckets(), key=st.integers(0, 2**64 - 1), share=st.floats(0, 1.2))
@example(bucket=make_bucket(0, 65_537, cuts=[0.1, 0.1003, 0.5]), key=1, share=0.999)
def test_sample(host, bucket, key, share):
    lines = int(share * (bucket.d // 16))
    results = []
    for kernels in (host, REFERENCE):
        out = np.empty(bucket.d, np.float32)
        moments = kernels.sample(bucket.memory, bucket.pieces, key, lines, out)
        results.append((moments, out[: moments.count]))
    same(*results)


@many
@given(bucket=buckets(), threshold=thresholds, in_place=st.booleans())
def test_exceedances(host, bucket, threshold, in_place):
    results = []
    for kernels in (host, REFERENCE):
        x = np.abs(bucket.a)
        x[~np.isfinite(x)] = 0
        out = x if in_place else np.empty(len(x) + 3, np.float32)
        moments = kernels.exceedances(x, threshold, out)
        results.append((moments, out[: moments.count]))
    same(*results)


@many
@given(bucket=buckets(not_finite=False))
def test_log_sum(host, bucket):
    x = np.abs(bucket.a)
    same(host.log_sum(x), REFERENCE.log_sum(x))


@many
@given(bucket=buckets(not_finite=False), share=st.floats(0, 1))
def test_kth_largest(host, bucket, share):
    if bucket.d:
        x, k = np.abs(bucket.a), max(1, int(share**3 * bucket.d))
        same(host.kth_largest(x, k), REFERENCE.kth_largest(x, k))


@many
@given(bucket=buckets(), threshold=thresholds, share=st.floats(0, 1.1), where=places)
@example(bucket=make_bucket(0, 200_000), threshold=0.0, share=0.0001, where="apart")  # prunes many times
@example(bucket=make_bucket(1, 200_000, "ties", cuts=[0.3, 0.7]), threshold=0.0, share=0.01, where="in the pieces")
@example(bucket=make_bucket(2, 200_000, "equal"), threshold=0.0, share=0.05, where="in the memory")
def test_select(host, bucket, threshold, share, where):
    capacity = int(share**3 * bucket.d)
    (b, out), (c, expected) = place(host, bucket, where), place(REFERENCE, bucket, where)
    result, reference = select(host, b, threshold, capacity, out), select(REFERENCE, c, threshold, capacity, expected)
    if reference[0].finite:
        same(result, reference)
    else:
        same(result[0], reference[0])


@many
@given(
    bucket=buckets(not_finite=False), wire=st.integers(0, 2), count_bytes=st.sampled_from([2, 4]), n=st.integers(1, 5)
)
def test_payloads(host, bucket, wire, count_bytes, n):
    capacity = min(bucket.d // 20 + 5, 2000)
    layout = Layout(bucket.d, capacity + 3, wire, count_bytes)
    results = []
    for kernels in (host, REFERENCE):
        payloads, entries, memories = [], [], []
        rest = bucket.copy()
        for _ in range(n):  # each payload takes the largest of what the last one left
            s, out, indices, values = select(kernels, rest, 0.0, capacity)
            payloads.append(layout.pack(kernels, indices, values, out))
            entries.append(s.kept)
            memories.append(out)
            rest.memory, rest.pieces = out, []
        payloads = np.stack(payloads)
        results.append((payloads, *memories, layout.accumulate(kernels, payloads, entries, 1 / 3)))
    same(*results)


@pytest.mark.parametrize("wire", [1, 2])
def test_conversions(host, wire):
    bits = np.random.default_rng(0).integers(0, 2**32, 300_001, np.uint32)
    edges = np.arange(0, 2**32, 2**12, dtype=np.uint64)
    edges = np.concatenate([edges, edges + 1, edges - 1]).astype(np.uint32)  # ties, denormals, infinities, NaNs
    for x in (bits.view(np.float32), edges.view(np.float32)):
        words, expected = np.empty(len(x), np.uint16), np.empty(len(x), np.uint16)
        host.narrow(x, wire, words)
        REFERENCE.narrow(x, wire, expected)
        np.testing.assert_array_equal(words, expected)


@many
@given(d=st.integers(0, 300), n=st.integers(0, 5), wire=st.sampled_from([1, 2]), seed=st.integers(0, 2**32 - 1))
def test_accumulate_dense(host, d, n, wire, seed):
    payloads = np.random.default_rng(seed).integers(0, 2**16, (n, d), np.uint16)
    results = []
    for kernels in (host, REFERENCE):
        out = np.empty(d, np.float32)
        finite = kernels.accumulate_dense(payloads, wire, 0.3, out)
        results.append((out, finite))
    same(*results)


@pytest.mark.parametrize("values", ["normal", *(pytest.param(v, marks=pytest.mark.long) for v in ("ties", "extreme"))])
@pytest.mark.parametrize("memory", [True, False])
def test_large_outputs_stream_around_the_cache(host, values, memory):
    """Beyond a few megabytes stores are non-temporal, and `out` must be line-aligned for that: both ways."""
    d = 2_000_003
    bucket = make_bucket(5, d, values, memory=memory, cuts=[0.2, 0.20001, 0.77], offset=3)
    out, unaligned_out, expected = host.empty(d), host.empty(d + 1)[1:], REFERENCE.empty(d)
    finite = REFERENCE.add(bucket.memory, bucket.pieces, expected)
    for o in (out, unaligned_out):
        same(host.add(bucket.memory, bucket.pieces, o), finite)
        same(o, expected)
    for threshold, capacity in ((0.0, 20_000), (2.0, 40_000)):
        reference = select(REFERENCE, bucket, threshold, capacity)
        for o in (out, unaligned_out):
            same(select(host, bucket, threshold, capacity, o), reference)
    layout = Layout(d, capacity, 0, 2)
    payloads = np.stack([layout.pack(REFERENCE, *reference[2:])] * 2)
    entries = [reference[0].kept] * 2
    layout.accumulate(REFERENCE, payloads, entries, 0.7, expected)
    for o in (out, unaligned_out):
        same(layout.accumulate(host, payloads, entries, 0.7, o), expected)


def test_subnormals_survive_a_thread_that_flushes_them(host):
    """TensorFlow's threads flush denormals; payloads must not depend on who calls."""
    torch = pytest.importorskip("torch")
    x, out, words = np.full(100, 1e-39, np.float32), host.empty(100), np.empty(100, np.uint16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        host.add(np.zeros(100, np.float32), [x], out)
        host.narrow(x, 1, words)
    finally:
        torch.set_flush_denormal(False)
    same(out, x)
    assert (words == round(1e-39 / 2.0**-133)).all()


def test_workspaces_may_be_longer(host):
    bucket = make_bucket(0, 5000)
    indices, values = np.empty(workspace(10) + 1000, np.uint32), np.empty(workspace(10) + 1000, np.float32)
    out = host.empty(5000)
    s = host.select(bucket.memory, bucket.pieces, out, 0.0, 10, indices, values)
    same((s, out, indices[:10], values[:10]), select(REFERENCE, bucket, 0.0, 10))
