"""The lane kernels: every instruction set gives the reference's bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hvd_compress.codecs.lanes import LaneFormat, MaskFormat, largest_bits, levels_of
from hvd_compress.kernels import fraction_bits
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import buckets, make_bucket, same

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
keys = st.integers(0, 2**64 - 1)
workers_of = st.sampled_from([1, 2, 3, 4, 5, 8, 16, 31, 100, 1024]) | st.integers(1, 2**31 - 1)


def quantize(kernels, bucket, layout, dtype, width, key, scales, votes):
    """Votes, words, and what they decode to."""
    mask = MaskFormat(bucket.d, layout.workers)
    planes = None
    if len(scales) > 1:
        planes = np.full((len(scales) - 1) * mask.words, -1, np.int64)
        kernels.mask(bucket.pieces, votes, mask.width, planes)
    lanes = 8 * np.dtype(dtype).itemsize // width
    words = np.full(16 * -(-bucket.d // (16 * lanes)), -1, dtype)
    kernels.quantize(bucket.pieces, scales, planes, layout.workers, layout.levels, width, key, words)
    out = np.full(bucket.d, np.nan, np.float32)
    kernels.dequantize(words, planes, layout.workers, layout.levels, width, scales, out)
    return planes, words, out


@many
@given(
    bucket=buckets(), key=keys, bits=st.integers(2, 16), workers=workers_of, count=st.integers(1, 8),
    dtype=st.sampled_from([np.int32, np.int64]), wider=st.integers(0, 3),
)  # fmt: skip
@example(make_bucket(0, 4096, cuts=[0.1, 0.101, 0.9]), 1, 2, 1, 1, np.int32, 0)
@example(make_bucket(0, 65_537, cuts=[0.5]), 1, 2, 2, 2, np.int64, 0)
def test_quantize(host, bucket, key, bits, workers, count, dtype, wider):
    if not largest_bits(workers):
        return
    layout = LaneFormat(bucket.d, levels_of(min(bits, largest_bits(workers))), workers)
    width = min(layout.width + wider, 32)
    with np.errstate(all="ignore"):
        norm = np.abs(np.concatenate([*bucket.pieces, [1e-30]])).max()
        norm = norm if np.isfinite(norm) else 1.0
        scales = layout.levels * 2.0 ** fraction_bits(layout.levels) / norm * 2.0 ** np.arange(count)
        scales = np.minimum(scales, np.finfo(np.float32).max).astype(np.float32)
        votes = (norm * 0.5 ** np.arange(1, count)).astype(np.float32)
    same(*(quantize(k, bucket, layout, dtype, width, key, scales, votes) for k in (host, REFERENCE)))


@many
@given(
    d=st.integers(0, 3000), bits=st.integers(2, 16), workers=workers_of, count=st.integers(1, 8),
    dtype=st.sampled_from([np.int32, np.int64]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_dequantize_any_words(host, d, bits, workers, count, dtype, seed):
    if not largest_bits(workers):
        return
    rng = np.random.default_rng(seed)
    layout = LaneFormat(d, levels_of(min(bits, largest_bits(workers))), workers)
    lanes = 8 * np.dtype(dtype).itemsize // layout.width
    info = np.iinfo(dtype)
    words = rng.integers(info.min, info.max, 16 * -(-d // (16 * lanes)), dtype, endpoint=True)
    scales = rng.standard_normal(count).astype(np.float32)
    planes = None
    if count > 1:
        mask = MaskFormat(d, workers)
        planes = rng.integers(-(2**63), 2**63, (count - 1) * mask.words)
        planes &= rng.integers(-(2**63), 2**63, len(planes)) & rng.integers(-(2**63), 2**63, len(planes))
    results = []
    for kernels in (host, REFERENCE):
        out = np.empty(d, np.float32)
        kernels.dequantize(words, planes, workers, layout.levels, layout.width, scales, out)
        results.append(out)
    same(*results)


@many
@given(bucket=buckets(), width=st.integers(1, 32), count=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_mask(host, bucket, width, count, seed):
    lanes = 63 // width
    values = np.concatenate([*bucket.pieces, np.float32([1.0, 0.0, np.inf])])
    limits = np.random.default_rng(seed).choice(np.abs(values[~np.isnan(values)]), count)
    limits = np.sort(limits)[::-1].copy()
    results = []
    for kernels in (host, REFERENCE):
        planes = np.full(count * 16 * -(-bucket.d // (16 * lanes)), -1, np.int64)
        kernels.mask(bucket.pieces, limits, width, planes)
        results.append(planes)
    same(*results)
    assert (results[0] >= 0).all()


@many
@given(bucket=buckets(), euclidean=st.booleans())
def test_norm(host, bucket, euclidean):
    same(host.norm(bucket.pieces, euclidean), REFERENCE.norm(bucket.pieces, euclidean))


sizes = st.one_of(
    st.integers(1, 300),
    st.integers(1, 2**32 - 1),
    st.integers(1, 65_535).map(lambda n: n * n),
    st.sampled_from([2**31, 2**32 - 1, 65_535**2 + 1]),
)


@many
@given(size=sizes, key=keys, place=st.floats(0, 1), n=st.integers(0, 100))
def test_permutation(host, size, key, place, n):
    start = int(place * (size - 1))
    results = []
    for kernels in (host, REFERENCE):
        out = np.empty(min(n, size - start), np.uint32)
        kernels.permutation(key, start, size, out)
        results.append(out)
    same(*results)


@pytest.mark.parametrize(
    ("bits", "workers", "count"),
    [
        (4, 2, 3),
        (8, 3, 1),
        pytest.param(4, 8, 1, marks=pytest.mark.long),
        pytest.param(8, 8, 2, marks=pytest.mark.long),
    ],
)
def test_large_payloads_stream_around_the_cache(host, bits, workers, count):
    """With arrays that are line-aligned, as non-temporal stores need, and that are not."""
    d = 8_000_003 if bits == 4 else 5_000_003
    bucket = make_bucket(5, d, memory=False, cuts=[0.2, 0.20001, 0.77], offset=3)
    layout, mask = LaneFormat(d, levels_of(bits), workers), MaskFormat(d, workers)
    scales = (layout.levels * 2.0 ** fraction_bits(layout.levels) / 5 * 4 ** np.arange(count)).astype(np.float32)
    limits = np.float32([1.25, 0.3125])[: count - 1]
    expected, out = layout.empty(), np.empty(d, np.float32)
    votes = mask.empty(count - 1) if count > 1 else None
    if votes is not None:
        REFERENCE.mask(bucket.pieces, limits, mask.width, votes)
    REFERENCE.quantize(bucket.pieces, scales, votes, workers, layout.levels, layout.width, 99, expected)
    REFERENCE.dequantize(expected, votes, workers, layout.levels, layout.width, scales, out)
    for offset in (0, 1):

        def array(n, dtype, offset=offset):
            size = np.dtype(dtype).itemsize
            return host.empty((n + offset) * size // 4).view(dtype)[offset:]

        planes = None
        if votes is not None:
            planes = array(len(votes), np.int64)
            host.mask(bucket.pieces, limits, mask.width, planes)
            same(planes, votes)
        words, decoded = array(layout.words, layout.dtype), array(d, np.float32)
        host.quantize(bucket.pieces, scales, planes, workers, layout.levels, layout.width, 99, words)
        same(words, expected)
        host.dequantize(words, planes, workers, layout.levels, layout.width, scales, decoded)
        same(decoded, out)
