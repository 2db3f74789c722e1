"""DGC against the paper's algorithm 4 (without clipping) in plain NumPy."""

from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, TopK, kernels
from hvd_compress.memory import MomentumCorrection
from tests.algorithms.test_topk import lowest_index_first, sampled_elements
from tests.gradients import gradient
from tests.simulation import Simulation


class Plain:
    """One worker: momentum correction and momentum factor masking, in float32."""

    def __init__(self, size: int, beta: float, k: int) -> None:
        self.u = np.zeros(size, np.float32)
        self.v = np.zeros(size, np.float32)
        self.beta = np.float32(beta)
        self.k = k

    def step(self, g: np.ndarray) -> np.ndarray:
        self.u = self.beta * self.u + g
        self.v = self.v + self.u
        sent = lowest_index_first(self.v, self.k)
        self.u[sent != 0] = 0
        self.v[sent != 0] = 0
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
