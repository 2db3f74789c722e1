"""Range-based floats: every instruction set gives the reference's codes and numbers; wrong arguments are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd_compress import CorruptPayload
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import packed_bytes
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import VALUES, same

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(
    n=st.integers(0, 400), values=st.sampled_from(sorted(VALUES)), bits=st.integers(4, 16), m=st.integers(0, 16),
    key=st.none() | st.integers(0, 2**64 - 1), narrower=st.sampled_from([1.0, 0.3, 0.0]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_identical(host, n, values, bits, m, key, narrower, seed):
    x = VALUES[values](np.random.default_rng(seed), n).astype(np.float32)
    low, high = narrower * min(x.min(initial=0), 0), max(x.max(initial=0), 0)
    f = RangeFloat(bits, min(m, bits), float(low), float(high))
    results = []
    for kernels in (host, REFERENCE):
        packed, out = np.full(packed_bytes(n, bits), 255, np.uint8), np.empty(n, np.float32)
        kernels.range_encode(x, f.code, key, packed)
        kernels.range_decode(packed, bits, f.table, out)
        results.append((packed, out))
    same(*results)


def test_not_finite_goes_to_the_end(kernels):
    f = RangeFloat(8, 3, -1.0, 2.0)
    packed, out = np.empty(4, np.uint8), np.empty(4, np.float32)
    for key in (None, 3):
        kernels.range_encode(np.array([np.inf, -np.inf, np.nan, 5.0], np.float32), f.code, key, packed)
        kernels.range_decode(packed, 8, f.table, out)
        np.testing.assert_array_equal(out[[0, 1, 3]], [2, -1, 2])
        assert out[2] in (-1, 2)


def test_refused(kernels):
    f = RangeFloat(8, 3, -1.0, 2.0)
    x, packed = np.zeros(9, np.float32), np.zeros(9, np.uint8)
    for change, message in (
        ({"bits": 3}, "code"),
        ({"bits": 17}, "code"),
        ({"mantissa": 17}, "code"),
        ({"base": 0}, "code"),
        ({"positives": 256}, "too many"),
        ({"low": 1.0}, "range"),
        ({"high": np.nan}, "range"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.range_encode(x, f.code._replace(**change), None, packed)
    with pytest.raises(ValueError, match="out has 8"):
        kernels.range_encode(x, f.code, None, packed[:8])
    with pytest.raises(ValueError, match="bits must be from 4 to 16"):
        kernels.range_decode(packed, 3, f.table, x)
    with pytest.raises(ValueError, match="packed has 8"):
        kernels.range_decode(packed[:8], 8, f.table, x)
    with pytest.raises(CorruptPayload, match="code"):
        kernels.range_decode(np.full(9, 3, np.uint8), 8, f.table[:3], x)
