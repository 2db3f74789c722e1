"""Saving and resuming: a run that is interrupted and a run that is not give the same bits."""

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import TopK
from hvd_compress.state_format import seal
from tests.contract.configurations import make, parameters, product, remembers, simulation
from tests.gradients import gradient
from tests.simulation import Simulation

MODEL = {"embedding": (150, 20), "bias": (7,), "conv": (8, 3, 3, 3), "head": (50, 40)}
WORKERS = 3


def step(sim: Simulation, number: int) -> list[bytes]:
    given = {
        name: [
            gradient("heavy_tailed", int(np.prod(shape)), number, rank, i).reshape(shape)
            for rank in range(len(sim.compressors))
        ]
        for i, (name, shape) in enumerate(MODEL.items())
    }
    return [mean.tobytes() for mean in sim.step(given).values()]


def resumed(configuration: dict[str, Any], states: list[dict[str, Any]]) -> Simulation:
    sim = simulation(configuration, len(states), bucket_mb=0.01, seed=3)
    for compressor, state in zip(sim.compressors, states, strict=True):
        compressor.load_state_dict(state)
    return sim


@product("interrupted", [2, 1, 7])
def test_resuming_is_going_on(configuration: dict[str, Any], interrupted: int) -> None:
    sim = simulation(configuration, WORKERS, bucket_mb=0.01, seed=3)
    for number in range(interrupted):
        step(sim, number)
    states = pickle.loads(pickle.dumps([compressor.state_dict() for compressor in sim.compressors]))
    again = resumed(configuration, states)
    for number in range(interrupted, interrupted + 8):
        assert step(again, number) == step(sim, number)


@parameters(lambda compressor: compressor.name in ("topk", "dgc", "two-level"))
def test_a_state_in_the_unit_of_a_loss_scale_is_converted(configuration: dict[str, Any]) -> None:
    """Where gradients come without one."""
    sims = [simulation(configuration, 2, bucket_mb=0.01, seed=3) for _ in range(2)]
    for sim in sims:
        step(sim, 0)
    states = [compressor.state_dict() for compressor in sims[0].compressors]
    for state in states:
        state["loss_scale"] = 8.0
        for arrays in state["memory"].values():
            for key in arrays:
                arrays[key] = arrays[key] * np.float32(8)
    again = resumed(configuration, [seal(state) for state in states])
    assert step(again, 1) == step(sims[1], 1)
    assert again.compressors[0].state_dict()["loss_scale"] == 1


@parameters()
def test_state_is_a_copy(configuration: dict[str, Any]) -> None:
    """Training goes on; the saved state stays. And loading keeps no hold of what was loaded."""
    sim = simulation(configuration, 2, bucket_mb=0.01, seed=3)
    step(sim, 0)
    states = [c.state_dict() for c in sim.compressors]
    pickled = pickle.dumps(states)
    expected = [step(sim, number) for number in (1, 2)]
    assert pickle.dumps(states) == pickled
    again = resumed(configuration, states)
    assert step(again, 1) == expected[0]
    for state in states:
        for arrays in state["memory"].values():
            for array in arrays.values():
                array[:] = np.nan
    assert step(again, 2) == expected[1]


@parameters()
def test_state_of_a_compressor_that_has_not_begun(configuration: dict[str, Any]) -> None:
    fresh = make(configuration)
    empty = fresh.state_dict()
    assert (empty["step"], empty["layout"], empty["memory"]) == (0, [], {})
    fresh.load_state_dict(json.loads(json.dumps(empty)))
    assert fresh.state_dict() == empty
    sim = simulation(configuration, 1)
    step(sim, 0)
    state = sim.compressors[0].state_dict()
    fresh.load_state_dict(state)
    assert pickle.dumps(fresh.state_dict()) == pickle.dumps(state)
    fresh.state_dict()["step"] = 77
    assert fresh.state_dict()["step"] == 1


@parameters()
def test_state_is_plain_data(configuration: dict[str, Any]) -> None:
    """Arrays by parameter name, and otherwise what JSON knows."""
    sim = simulation(configuration, 1)
    for number in range(2):
        step(sim, number)
    state = sim.compressors[0].state_dict()
    for name, arrays in state.pop("memory").items():
        assert all(a.dtype == np.float32 and a.shape == (np.prod(MODEL[name]),) for a in arrays.values())
    assert json.loads(json.dumps(state)) == state


def states_of(compressor: hvd_compress.Compressor, workers: int = 2) -> list[dict[str, Any]]:
    sim = Simulation(compressor, workers)
    step(sim, 0)
    return [c.state_dict() for c in sim.compressors]


def test_too_late() -> None:
    sim = Simulation(TopK(), 1)
    step(sim, 0)
    with pytest.raises(RuntimeError, match="before the first step"):
        sim.compressors[0].load_state_dict(sim.compressors[0].state_dict())


def load(compressor: hvd_compress.Compressor, states: list[Any]) -> Simulation:
    sim = Simulation(compressor, len(states))
    for mine, state in zip(sim.compressors, states, strict=True):
        mine.load_state_dict(state)
    return sim


def test_another_rank_s_state() -> None:
    """What is held back is each rank's own: one rank's memory for all would send it N times."""
    state = states_of(TopK(min_numel=1))[0]
    with pytest.raises(ValueError, match=r"rank 1: the saved state: it is rank 0's of 2.*flush"):
        step(load(TopK(min_numel=1), [state, state]), 1)


def test_another_number_of_workers() -> None:
    states = states_of(TopK(min_numel=1), 3)
    with pytest.raises(ValueError, match="rank 0: the saved state: it is rank 0's of 3"):
        step(load(TopK(min_numel=1), states[:2]), 1)


def test_one_state_for_all_after_a_flush() -> None:
    sim = Simulation(TopK(min_numel=1), 3)
    step(sim, 0)
    sim.compressors[1].flush()
    step(sim, 1)
    again = load(TopK(min_numel=1), [sim.compressors[0].state_dict()] * 2)
    assert all(np.isfinite(np.frombuffer(mean, np.float32)).all() for mean in step(again, 2))


def test_only_some_ranks_resume() -> None:
    state = states_of(TopK(min_numel=1))[0]
    with pytest.raises(ValueError, match="ranks disagree on the step: rank 0 has 1, rank 1 has 0; restore"):
        step(load(TopK(min_numel=1), [state, TopK().state_dict()]), 1)


def test_parameters_the_model_does_not_have() -> None:
    state = states_of(TopK(min_numel=1), 1)[0]
    state["memory"]["gone"] = {}
    state = seal(state)
    with pytest.raises(ValueError, match="parameters this model does not compress: gone"):
        step(load(TopK(min_numel=1), [state]), 1)


def test_memory_of_another_shape() -> None:
    state = states_of(TopK(min_numel=1), 1)[0]
    state["memory"]["head"]["residual"] = np.zeros(5, np.float32)
    state = seal(state)
    with pytest.raises(ValueError, match=r"the saved residual of 'head' has shape \(5,\), not \(2000,\)"):
        step(load(TopK(min_numel=1), [state]), 1)


@parameters(remembers)
def test_states_of_two_instances_are_their_own(configuration: dict[str, Any]) -> None:
    """Two simulations side by side give what each gives alone: nothing is kept in a class or a module."""
    alone = simulation(configuration, 2, seed=3)
    expected = [step(alone, number) for number in range(3)]
    left, right = simulation(configuration, 2, seed=3), simulation(configuration, 2, seed=3)
    for number in range(3):
        assert step(left, number) == expected[number]
        step(right, number + 10)


@parameters()
def test_copies_share_nothing(configuration: dict[str, Any]) -> None:
    original = make(configuration)
    for twin in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert twin.to_config() == original.to_config()
        twin.flush()
        assert twin.runtime.flush_requested
        assert not original.runtime.flush_requested
