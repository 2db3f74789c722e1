"""The device kernel of DGC's momentum gives the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import KERNELS, array, tensor


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("values", ["normal", "denormals", "no gradient", "huge", "nan"])
def test_add_momentum(values, nesterov):
    rng = np.random.default_rng(0)
    u, v = (rng.standard_normal((2, 200)) * (5e37 if values == "huge" else 1)).astype(np.float32)
    u[:50], v[20:70] = 1e-39, -1e-40
    known = values if values in ("normal", "denormals") else "normal"
    pieces = make_bucket(3, 200, known, memory=False, cuts=[0.4], bad="nan" if values == "nan" else None).pieces
    if values == "no gradient":
        pieces = []
    ui, vi = tensor(u), tensor(v)
    finite = KERNELS.add_momentum(ui, vi, [tensor(p) for p in pieces], 0.9, nesterov, ui, vi)
    same(finite, REFERENCE.add_momentum(u, v, pieces, 0.9, nesterov, u, v))
    assert finite == (values not in ("huge", "nan"))
    same((array(ui), array(vi)), (u, v))
