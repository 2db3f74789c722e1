import numpy as np
import pytest

from hvd_compress import Dense
from tests.gradients import DISTRIBUTIONS, gradient
from tests.simulation import Simulation


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mean(workers: int, distribution: str) -> None:
    """Within the rounding of N - 1 additions and one multiplication of the mean in float64."""
    sim = Simulation(Dense(min_numel=1), workers)
    for step in range(2):
        arrays = np.stack([gradient(distribution, 3001, step, rank) / np.float32(8) for rank in range(workers)])
        mean = sim.step({"w": list(arrays)})["w"]
        bound = np.abs(arrays).astype(np.float64).sum(axis=0) * workers * 2.0**-24 + 2.0**-149
        assert (np.abs(mean - arrays.mean(axis=0, dtype=np.float64)) <= bound).all()


def test_sends_the_gradient_itself() -> None:
    sim = Simulation(Dense(), 2)
    sim.step({"w": [np.ones(5000, np.float32)] * 2})
    assert sim.compressors[0].stats()["total"]["ratio"] == 1.0
    assert sim.compressors[0].stats()["total"]["achieved"] is None
