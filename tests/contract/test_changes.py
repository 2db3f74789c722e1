"""Workers go and come: means are of those that there are, memories stay, and all are in the same step."""

from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import Simulation, TopK, TwoLevel
from hvd_compress.phased import phases
from hvd_compress.state_format import seal
from tests.contract.configurations import exact, memory, parameters, remembers, simulation
from tests.gradients import gradient

SHAPES = {"embedding": (150, 20), "conv": (8, 3, 3, 3), "head": (50, 40)}
CHANGES: list[tuple[list[int], int]] = [([0, 2], 2), ([1, 0], 4), ([3], 1), ([0], 2), ([0, 1], 2)]
"""From three workers on: who stays, and how many there are then."""


def draw(step: int, workers: int) -> dict[str, list[np.ndarray]]:
    return {
        name: [gradient("laplace", int(np.prod(shape)), step, rank, i).reshape(shape) for rank in range(workers)]
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def everything(compressor: hvd_compress.Compressor) -> dict[str, dict[str, bytes]]:
    return {name: {key: a.tobytes() for key, a in memory(compressor, name).items()} for name in SHAPES}


def goes_along(compressor: hvd_compress.Compressor) -> bool:
    """Whether what it holds back does not depend on which workers share a node."""
    return not phases(compressor).asks_for_nodes


@parameters(goes_along)
def test_workers_go_and_come(configuration: dict[str, Any]) -> None:
    """Survivors keep every bit of their memory, new workers begin empty, and what follows is what it would be if the
    memories had been saved by each and restored among as many workers. The simulations see to it that means are equal.
    """
    sim = simulation(configuration, 3, bucket_mb=0.01, seed=3)
    for step in range(2):
        sim.step(draw(step, 3))
    for survivors, workers in CHANGES:
        kept = [sim.compressors[rank] for rank in survivors]
        before = [everything(compressor) for compressor in kept]
        sim.change(survivors, workers)
        assert sim.compressors[: len(kept)] == kept
        assert [everything(compressor) for compressor in kept] == before
        restored = resumed(configuration, sim.compressors)
        for _ in range(2):
            step += 1
            means, expected = (one.step(draw(step, workers)) for one in (sim, restored))
            assert {n: m.tobytes() for n, m in means.items()} == {n: m.tobytes() for n, m in expected.items()}
            assert {compressor.state_dict()["step"] for compressor in sim.compressors} == {step + 1}


def resumed(configuration: dict[str, Any], compressors: list[hvd_compress.Compressor]) -> Any:
    """A simulation that begins with the states of these; new ones have the first one's, with an empty memory."""
    first = compressors[0].state_dict()
    sim = simulation(configuration, len(compressors), bucket_mb=0.01, seed=3)
    for rank, compressor in enumerate(compressors):
        state = compressor.state_dict()
        empty = {n: {k: np.zeros_like(a) for k, a in arrays.items()} for n, arrays in first["memory"].items()}
        of_this = state if state["step"] else {**first, "memory": empty}
        sim.compressors[rank].load_state_dict(seal({**of_this, "rank": rank, "workers": len(compressors)}))
    return sim


@parameters(lambda c: goes_along(c) and remembers(c) and exact(c) and "momentum" not in c.parameters())
def test_nothing_is_lost_but_what_the_dead_held(configuration: dict[str, Any]) -> None:
    """All that was held back and comes in is in the means, times the workers there are, or held back afterwards."""
    sim = simulation(configuration, 3)
    sim.step(draw(0, 3))
    for step, (survivors, workers) in enumerate(CHANGES, 1):
        sim.change(survivors, workers)
        given = draw(step, workers)
        held = {name: _sum(memory(c, name).get("residual", 0) for c in sim.compressors) for name in SHAPES}
        means = sim.step(given)
        for name, arrays in given.items():
            left = _sum(memory(c, name)["residual"] for c in sim.compressors)
            total = held[name] + _sum(array.reshape(-1) for array in arrays)
            np.testing.assert_allclose(workers * means[name].reshape(-1) + left, total, atol=1e-4 * abs(total).max())


def _sum(arrays: Any) -> Any:
    return sum(np.asarray(array, np.float64) for array in arrays)


def test_a_new_worker_does_not_go_on_from_a_state_of_its_own() -> None:
    given, without = Simulation(TopK(0.1, min_numel=1), 2), Simulation(TopK(0.1, min_numel=1), 2)
    for sim in (given, without):
        sim.step(draw(0, 2))
        old = sim.compressors[1].state_dict()
        sim.step(draw(1, 2))
        sim.change([0, 1], 3)
        if sim is given:
            sim.compressors[2].load_state_dict(old)
        sim.step(draw(2, 3))
        assert sim.compressors[2].state_dict()["step"] == 3
    assert everything(given.compressors[2]) == everything(without.compressors[2])


def test_shares_of_nodes_do_not_go_along() -> None:
    sim = Simulation(TwoLevel(TopK(0.1), ranks_per_node=2), 4)
    sim.step(draw(0, 4))
    sim.change([0, 1, 2], 3)
    with pytest.raises(ValueError, match=r"the workers have changed, and what TwoLevel.* make a new compressor"):
        sim.step(draw(1, 3))


def test_a_change_before_the_first_step() -> None:
    sim = Simulation(TopK(0.1), 2)
    sim.change([1], 3)
    for step in range(2):
        sim.step(draw(step, 3))


@pytest.mark.parametrize(
    ("survivors", "workers"), [([], 2), ([0, 0], 2), ([2], 2), ([-1], 2), ([0, 1], 1)], ids=lambda value: str(value)
)
def test_who_cannot_survive(survivors: list[int], workers: int) -> None:
    with pytest.raises(ValueError, match="survivors must be"):
        Simulation(TopK(), 2).change(survivors, workers)
