"""DGC's momentum on the device gives the host's bits: that of gradients, and that of means."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels import host
from hvd_compress.kernels.device.placement import PlacedKernels
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from hvd_compress.momentum import MeanMomentum
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import KERNELS, array, tensor, torch


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


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_momentum_of_means(nesterov):
    """Clipped, decayed, rescaled, saved and restored; one that is not finite is forgotten."""
    placed = PlacedKernels(KERNELS, host.KERNELS)
    seen = []
    for kernels, there in ((host.KERNELS, np.array), (placed, tensor)):
        rng = np.random.default_rng(1)
        results, saved = [], {}
        for run in range(2):
            momentum = MeanMomentum(0.9, nesterov=nesterov, clip=5.0, weight_decay=0.1)
            momentum.kernels = kernels
            assert momentum.restore(saved, {"a": 40, "b": 40}) == ""
            for step in range(4):
                mean, decay = (rng.standard_normal((2, 40)) * 10.0**step).astype(np.float32)
                mean[7] = 3e38 if (run, step) == (1, 3) else mean[7]
                result, kept = momentum.of_mean("a", there(mean), there(decay) if step % 2 else None)
                added, other = momentum.of_decay("b", there(np.full(40, 3e38, np.float32) if step == 3 else decay))
                momentum.keep({"a": kept, "b": other})
                momentum.rescale(0.5)
                assert all(isinstance(x, type(there(mean))) for x in (result, kept, added, other))
                results += [kernels.on_host(x).copy() for x in (result, added)]
                result *= 2  # whoever gets it may write to it
                saved = momentum.state()
                results += saved.values()
        seen.append(tuple(results))
    assert isinstance(kept, torch.Tensor)
    assert np.isfinite(saved["b"]).all()
    same(*seen)
