"""All workers compute the same means, bit for bit (``Simulation.step`` raises AssertionError if they do not)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hvd_compress
from hvd_compress.exchange import AllReduce
from tests.contract.configurations import CONFIGURATIONS, algorithm, make, parameters, product, selects, simulation
from tests.gradients import DISTRIBUTIONS, gradient
from tests.simulation import Simulation

MODEL = {"embedding": (300, 64), "scalar": (), "empty": (0,), "bias": (7,), "conv": (8, 3, 3, 3), "long": (70_000,)}
CONFIGURED = st.sampled_from(CONFIGURATIONS)


def gradients(model: dict[str, tuple[int, ...]], workers: int, step: int, distribution: str = "laplace") -> Any:
    return {
        name: [gradient(distribution, int(np.prod(shape)), step, rank, index).reshape(shape) for rank in range(workers)]
        for index, (name, shape) in enumerate(model.items())
    }


@product("workers", [3, 1, 2, 8])
def test_many_shapes(configuration: dict[str, Any], workers: int) -> None:
    """Before parameters are fused to buckets (the first step) and after; with buckets of about 0.1 MiB."""
    sim = simulation(configuration, workers, bucket_mb=0.1)
    for step in range(3):
        means = sim.step(gradients(MODEL, workers, step))
        assert {name: mean.shape for name, mean in means.items()} == MODEL
        assert all(mean.dtype == np.float32 and np.isfinite(mean).all() for mean in means.values())


@product("distribution", DISTRIBUTIONS)
def test_distributions(configuration: dict[str, Any], distribution: str) -> None:
    """Finite gradients make finite means: for zeros, zeros; nothing larger than what came in: element by element, by
    norm where a compressor mixes the elements, or than the largest where it leaves their size to chance."""
    size, workers = 1025, 2
    sim = simulation(configuration, workers)
    compressor = sim.compressors[0]
    inner = configuration.get("compressor", configuration)
    brought = np.zeros(size)
    amplified = 3.0 if algorithm(compressor).name == "dgc" else 1.0  # 1 + 0.9 + 0.81: momentum, unsent
    random_part = selects(compressor) and compressor.signals and not compressor.error_feedback
    for step in range(3 if distribution != "huge" else 2):
        given = [gradient(distribution, size, step, rank) for rank in range(workers)]
        mean = sim.step({"w": given})["w"]
        overflow = max(np.abs(g).max() for g in given) > workers * 65504 and inner.get("dtype") == "float16"
        if overflow:
            continue
        if distribution == "huge" and np.isnan(mean).all():  # what is rounded, transformed or accumulated overflows
            assert random_part or algorithm(compressor).name in ("dgc", "fft")
            continue
        assert np.isfinite(mean).all()
        rounding = 2.0**-23  # half the smallest float16 is 2**-25
        if inner["name"] in ("fft", "sign-sgd"):
            brought += max(np.linalg.norm(g.astype(np.float64)) for g in given)
            assert np.linalg.norm(mean.astype(np.float64)) <= brought[0] * (1 + 2.0**-8)
            continue
        if "weights" in configuration:  # what is decoded may be anything, but out of nothing comes nothing
            assert any(g.any() for g in given) or not mean.any()
            continue
        brought += np.max(np.abs(given), axis=None if inner["name"] == "terngrad" else 0)
        if compressor.signals:  # rounded up to a level of the norm
            brought[:] += max(np.linalg.norm(g.astype(np.float64)) for g in given) * (20 if random_part else 1)
            assert brought.all() or not mean.any()
        assert (np.abs(mean) <= amplified * brought * (1 + 2.0**-8) + rounding).all()


@parameters()
def test_twenty_steps(configuration: dict[str, Any]) -> None:
    """The mean of all means comes close to the mean of all gradients: nothing piles up, nothing is sent twice."""
    size, workers = 2000, 2
    sim = simulation(configuration, workers)
    sent, true = np.zeros(size), np.zeros(size)
    for step in range(20):
        given = [gradient("normal", size, step, rank) + np.float32(0.5) for rank in range(workers)]
        sent += sim.step({"w": given})["w"]
        true += np.mean(given, axis=0, dtype=np.float64)
    assert sim.compressors[0].stats()["total"]["steps"] == 20
    # every compressor points the same way as the gradient
    assert sent @ true > 0.1 * np.linalg.norm(sent) * np.linalg.norm(true)


@given(
    configuration=CONFIGURED,
    shapes=st.lists(st.lists(st.integers(0, 7), max_size=4).map(tuple), min_size=1, max_size=5),
    workers=st.integers(1, 4),
    distribution=st.sampled_from(sorted(DISTRIBUTIONS)),
    bucket_mb=st.sampled_from([1e-4, 1e-3, 25.0]),
)
def test_any_shapes(
    configuration: dict[str, Any], shapes: list[tuple[int, ...]], workers: int, distribution: str, bucket_mb: float
) -> None:
    model = {f"p{i}": shape for i, shape in enumerate(shapes)}
    sim = simulation(configuration, workers, bucket_mb=bucket_mb)
    for step in range(3):
        means = sim.step(gradients(model, workers, step, distribution))
        assert {name: mean.shape for name, mean in means.items()} == model


def test_disagreement_is_noticed() -> None:
    """The check itself works: a compressor that returns each worker's own values is caught."""

    class Selfish(type(make({"name": "dense"}))):
        def exchange(self, bucket: Any) -> Any:
            mine = bucket.values.copy()
            yield AllReduce(bucket.values)
            return mine

    with pytest.raises(AssertionError, match="workers 0 and 1 computed different means of 'w'"):
        Simulation(Selfish(min_numel=1), 2).step({"w": [np.zeros(3), np.ones(3)]})


@parameters()
def test_same_bytes_from_both_kernel_sets(configuration: dict[str, Any], recorder: Any, use_kernels: Any) -> None:
    """What goes over the network, and the means, do not depend on the kernels."""
    runs = []
    for kernel_set in ("host", "reference"):
        use_kernels(kernel_set)
        recorder.clear()
        sim = simulation(configuration, 2, seed=5)
        means = [sim.step({"w": [gradient("heavy_tailed", 70_001, s, r) for r in range(2)]})["w"] for s in range(2)]
        runs.append(([(p.form, p.array.tobytes()) for p in recorder.posts], [mean.tobytes() for mean in means]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("workers", [64, pytest.param(1024, marks=pytest.mark.long)])
def test_many_workers(workers: int) -> None:
    """1,024 are the most there may be."""
    rng = np.random.default_rng(0)
    simulation = Simulation(hvd_compress.TopK(0.1, min_numel=1), workers)
    gradients = rng.normal(size=(workers, 64)).astype(np.float32)
    first = simulation.step({"w": list(gradients)})["w"]
    second = simulation.step({"w": [np.zeros(64, np.float32)] * workers})["w"]
    held = sum(c.state_dict()["memory"]["w"]["residual"].astype(np.float64) for c in simulation.compressors)
    total = workers * (first.astype(np.float64) + second) + held
    np.testing.assert_allclose(total, gradients.sum(0, dtype=np.float64), atol=1e-2)
