"""DGC against the paper's algorithm 4 in plain NumPy, and against momentum SGD where nothing is left out."""

import math
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import DGC, TopK, kernels
from hvd_compress.memory import MomentumCorrection
from tests.algorithms.test_topk import lowest_index_first, sampled_elements
from tests.gradients import gradient
from tests.simulation import Simulation


class Plain:
    """One worker: momentum correction, clipping and momentum factor masking, in float32."""

    def __init__(self, size: int, beta: float, k: int, *, nesterov: bool = False, limit: float = float("inf")) -> None:
        self.u = np.zeros(size, np.float32)
        self.v = np.zeros(size, np.float32)
        self.beta = np.float32(beta)
        self.k = k
        self.nesterov = nesterov
        self.limit = limit

    def step(self, g: np.ndarray) -> np.ndarray:
        norm = float(np.sqrt(np.sum(g.astype(np.float64) ** 2)))
        if norm > self.limit:
            g = g * np.float32(self.limit / norm)
        self.u = self.beta * self.u + g
        self.v = self.v + (self.beta * self.u + g if self.nesterov else self.u)
        sent = lowest_index_first(self.v, self.k)
        self.v[sent != 0] = 0
        if self.k < len(g):
            self.u[sent != 0] = 0
        return sent


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("distribution", ["laplace", "mostly_zero", "ties"])
def test_thirty_steps(momentum: float, workers: int, distribution: str) -> None:
    size, ratio = 4000, 0.01
    sim = Simulation(DGC(ratio, momentum=momentum, min_numel=1), workers)
    plain = [Plain(size, momentum, round(ratio * size)) for _ in range(workers)]
    for step in range(30):
        arrays = [gradient(distribution, size, step, rank) for rank in range(workers)]
        expected = np.zeros(size, np.float32)
        for worker, array in zip(plain, arrays, strict=True):
            expected += worker.step(array) * np.float32(1 / workers)
        np.testing.assert_array_equal(sim.step({"w": arrays})["w"], expected)
        for worker, compressor in zip(plain, sim.compressors, strict=True):
            memory = compressor.state_dict()["memory"]["w"]
            np.testing.assert_array_equal(memory["velocity"], worker.v)
            np.testing.assert_array_equal(memory["momentum"], worker.u)


def test_momentum_comes_back_when_a_selection_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misleading sample in the second step, when there is momentum to be masked and unmasked."""
    calls: list[int] = []
    original = MomentumCorrection.restore

    def restore(memory: MomentumCorrection, indices: Any, values: Any) -> None:
        calls.append(len(indices))
        original(memory, indices, values)

    monkeypatch.setattr(MomentumCorrection, "restore", restore)
    size, k = 300_000, 3000
    sim = Simulation(DGC(0.01), 1)
    plain = Plain(size, 0.9, k)
    misleading = gradient("normal", size, 1)
    misleading[sampled_elements(TopK(0.01), size)] *= 1e6
    for g in (misleading, gradient("normal", size, 2), misleading * np.float32(-0.1)):
        np.testing.assert_array_equal(sim.step({"w": [g]})["w"], plain.step(g))
        np.testing.assert_array_equal(sim.compressors[0].state_dict()["memory"]["w"]["momentum"], plain.u)
    assert calls


def test_without_momentum_it_is_top_k() -> None:
    left = Simulation(DGC(0.02, momentum=0.0, min_numel=1), 2)
    right = Simulation(TopK(0.02, min_numel=1), 2)
    for step in range(5):
        arrays = [gradient("laplace", 3000, step, rank) for rank in range(2)]
        np.testing.assert_array_equal(left.step({"w": arrays})["w"], right.step({"w": arrays})["w"])


def test_what_the_velocity_was_when_a_step_is_skipped() -> None:
    memory = MomentumCorrection(kernels.get(), 4, 0.9)
    memory.begin([np.ones(4, np.float32)])
    memory.values()
    memory.commit()
    memory.begin([np.array([1, np.nan, 1, 1], np.float32)])
    np.testing.assert_array_equal(memory.values(), np.ones(4))
    assert not memory.finite
    memory.rollback()
    np.testing.assert_array_equal(memory.arrays()["velocity"], np.ones(4))
    np.testing.assert_array_equal(memory.arrays()["momentum"], np.ones(4))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
def test_clipping_and_nesterov(nesterov: bool, workers: int) -> None:
    """The paper's limit for a part of the mean, g / N, is clip / sqrt(N); each parameter has its own."""
    size, ratio, clip = 2000, 0.02, 10.0
    sim = Simulation(DGC(ratio, momentum=0.5, nesterov=nesterov, clip=clip, min_numel=1), workers)
    plain = [
        Plain(size, 0.5, round(ratio * size), nesterov=nesterov, limit=clip * workers**0.5) for _ in range(workers)
    ]
    clipped = 0
    for step in range(10):
        arrays = [gradient("normal", size, step, rank) * np.float32(0.1 + 0.2 * step) for rank in range(workers)]
        clipped += sum(float(np.linalg.norm(array)) > clip * workers**0.5 for array in arrays)
        expected = np.zeros(size, np.float32)
        for worker, array in zip(plain, arrays, strict=True):
            expected += worker.step(array) * np.float32(1 / workers)
        np.testing.assert_allclose(sim.step({"w": arrays})["w"], expected, rtol=1e-6)
    assert 0 < clipped < 10 * workers


def test_every_parameter_is_clipped_by_itself() -> None:
    sim = hvd_compress.Simulation(DGC(1.0, momentum=0.0, clip=1.0, min_numel=4), 4)
    shapes = {"a": (2, 8), "b": (4, 4), "bias": (4,)}
    scales = {"a": 9, "b": 0.1, "bias": 9}
    given = {name: [np.full(shape, scales[name], np.float32)] * 4 for name, shape in shapes.items()}
    for _ in range(2):  # with a bucket for each parameter, and with one for all
        means = sim.step(given)
        assert np.linalg.norm(means["a"]) == pytest.approx(2)  # 1 / sqrt(4) for each of the four parts of the mean
        np.testing.assert_allclose(means["b"], 0.1)
        assert np.linalg.norm(means["bias"]) == pytest.approx(1)  # a mean, as it is clipped without compression


def test_the_limit_is_that_of_gradients_without_a_loss_scale() -> None:
    """Of weights and of a bias, whose mean is clipped: with gradients and limits scaled by powers of two nothing else
    changes, and what is below the limit stays what it is."""
    shapes = {"large": (30, 20), "small": (20, 20), "bias": (20,)}
    norms = {"large": 20.0, "small": 0.5, "bias": 9.0}
    scales = [1.0, 1024.0, 1024.0, 0.25]
    sims = [hvd_compress.Simulation(DGC(0.3, momentum=0.5, clip=1.0, min_numel=100), 2) for _ in range(2)]
    before = 1.0
    for step, scale in enumerate(scales):
        given = {
            name: [gradient("normal", math.prod(shape), step, rank).reshape(shape) for rank in range(2)]
            for name, shape in shapes.items()
        }
        for name, arrays in given.items():
            given[name] = [array * np.float32(norms[name] / np.linalg.norm(array)) for array in arrays]
        for worker in sims[1]._workers:
            assert worker._engine is not None
            worker._engine.rescale(scale / before)
            worker._engine.use_loss_scale(scale)
        before = scale
        plain = sims[0].step(given)
        scaled = sims[1].step({name: [array * np.float32(scale) for array in given[name]] for name in given})
        for name in shapes:
            np.testing.assert_array_equal(scaled[name] / np.float32(scale), plain[name])


@pytest.mark.parametrize("nesterov", [False, True])
def test_at_ratio_1_it_is_momentum_sgd(nesterov: bool) -> None:
    """Biases too, which Horovod reduces: without nesterov three steps of ones give 1, 1.9 and 2.71."""
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(6))
    sgd = torch.optim.SGD([parameter], lr=1.0, momentum=0.9, nesterov=nesterov)
    sim = hvd_compress.Simulation(DGC(1.0, momentum=0.9, nesterov=nesterov, min_numel=1), 2)
    for step in range(5):
        mean = 1.0 if step < 3 else -2.0 * step
        before = parameter.detach().clone()
        parameter.grad = torch.full((6,), mean)
        sgd.step()
        arrays = [np.full(6, mean - 1, np.float32), np.full(6, mean + 1, np.float32)]
        means = sim.step({"weight": [array.reshape(2, 3) for array in arrays], "bias": arrays})
        expected = (before - parameter.detach()).numpy()
        np.testing.assert_allclose(means["weight"].reshape(-1), expected, rtol=1e-6)
        np.testing.assert_allclose(means["bias"], expected, rtol=1e-6)
        if step < 3 and not nesterov:
            assert means["bias"][0] == pytest.approx((1, 1.9, 2.71)[step])


def test_weights_and_biases_move_alike() -> None:
    """About ten times the gradient a step, as with momentum SGD, less what masking takes off."""
    sim = hvd_compress.Simulation(DGC(0.05, momentum=0.9, min_numel=1), 1)
    ones = {"weight": [np.ones((10, 20), np.float32)], "bias": [np.ones(20, np.float32)]}
    total = {name: np.zeros(array[0].shape) for name, array in ones.items()}
    for _ in range(1000):
        for name, mean in sim.step(ones).items():
            total[name] += mean / 1000
    np.testing.assert_allclose(total["bias"], 10 - 0.09, rtol=1e-3)
    held = sim.compressors[0].state_dict()["memory"]["weight"]["velocity"].mean() / 1000
    # a momentum that starts anew every 20 steps: 1, 1.9, ... 8.8
    assert total["weight"].mean() + held == pytest.approx(10 - 90 / 20 * (1 - 0.9**20), rel=0.01)


def test_weight_decay_needs_weights() -> None:
    sim = hvd_compress.Simulation(DGC(weight_decay=0.1), 1)
    with pytest.raises(ValueError, match="weight_decay=0"):
        sim.step({"weight": [np.ones((10, 20), np.float32)]})
