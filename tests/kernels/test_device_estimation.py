"""The device kernels that thresholds are estimated with, and DGC's momentum, give the reference's bits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import KERNELS, array, tensor


def magnitudes(values, d=200):
    return np.abs(make_bucket(11, d, values, memory=False).pieces[0])


@pytest.mark.parametrize("values", ["normal", "ties", "extreme"])
def test_kth_largest(values):
    x = magnitudes(values)
    for k in (1, 77):
        same(KERNELS.kth_largest(tensor(x), k), REFERENCE.kth_largest(x, k))
    with pytest.raises(ValueError, match="k must be in"):
        KERNELS.kth_largest(tensor(x), 201)


@pytest.mark.parametrize("threshold", [0.0, 0.3, math.inf])
@pytest.mark.parametrize("values", ["heavy tails", "ties"])
def test_exceedances(values, threshold):
    x = magnitudes(values)
    out, expected, in_place = KERNELS.empty(203), np.empty(200, np.float32), tensor(x)
    moments = REFERENCE.exceedances(x, threshold, expected)
    for to in (out, in_place):
        same(KERNELS.exceedances(in_place, threshold, to), moments)
        same(array(to)[: moments.count], expected[: moments.count])


def test_exceedances_of_nothing():
    same(KERNELS.exceedances(KERNELS.empty(0), 1.0, KERNELS.empty(0)), (0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("values", ["extreme", "mostly zeros", "denormals"])
def test_log_sum(values):
    x = magnitudes(values)
    same(KERNELS.log_sum(tensor(x)), REFERENCE.log_sum(x))
    same(KERNELS.log_sum(tensor(x[:0])), REFERENCE.log_sum(x[:0]))


def test_log_sum_of_several_chunks():
    x = magnitudes("heavy tails", 8200)
    same(KERNELS.log_sum(tensor(x)), REFERENCE.log_sum(x))


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
