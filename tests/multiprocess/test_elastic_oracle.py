"""What elastic jobs compare their means with: right means pass, and those divided by a wrong number do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hvd_compress
from tests.gradients import gradient
from tests.multiprocess.test_elastic import CONFIGURATIONS
from tests.ranks.elastic_oracle import Oracle
from tests.ranks.elastic_plan import held_by, total

SHAPES = {"0.weight": (128, 64), "0.bias": (128,), "2.weight": (128, 128), "4.weight": (32, 128), "6.weight": (10, 32)}


def simulated(sim: hvd_compress.Simulation, given: dict[str, list[np.ndarray]]) -> Oracle:
    """Return the oracle of the first worker; Horovod's part is played by who has all workers' gradients."""

    def gather(mine: Any) -> list[Any]:
        """Return all workers' momenta, which are the same, or the largest magnitudes of their gradients."""
        if any(isinstance(array, np.ndarray) for array in mine.values()) or not mine:
            return [mine]
        return [{n: np.abs(given[n][rank]).max() for n in mine} for rank in range(len(sim.compressors))]

    plan: Any = SimpleNamespace(
        hvd=SimpleNamespace(size=lambda: len(sim.compressors)),
        held=lambda _: total([held_by(compressor) for compressor in sim.compressors]),
        gather=gather,
    )
    return Oracle(
        plan, sim.compressors[0], lambda _: np.concatenate([np.mean(g, 0).reshape(-1) for g in given.values()])
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_wrong_number_of_workers_is_noticed(name: str) -> None:
    """For every parameter in every step, with one worker and with two."""
    for workers in (1, 2):
        sim = hvd_compress.Simulation(hvd_compress.from_config({"bucket_mb": 0.05, **CONFIGURATIONS[name]}), workers)
        for step in range(4):
            given = {
                of: [gradient("laplace", int(np.prod(shape)), step, i, rank).reshape(shape) for rank in range(workers)]
                for i, (of, shape) in enumerate(SHAPES.items())
            }
            own = {of: arrays[0] for of, arrays in given.items()}
            oracle = simulated(sim, given)
            oracle.before()
            means = sim.step(given)
            oracle.check(own, means)
            for of in SHAPES:
                with pytest.raises(AssertionError, match=r"equal to tolerance|\.weight"):
                    oracle.check(own, {**means, of: means[of] * np.float32(workers / (workers + 1))})
