"""States of N ranks, with which M ranks go on."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, Simulation, TopK
from hvd_compress.elastic import redistribute
from hvd_compress.state_format import seal
from tests.contract.configurations import LEARNS, make
from tests.contract.test_changes import SHAPES, draw

LIKE = {"min_numel": 1}


def saved(workers: int, steps: int = 2, compressor: Any = None) -> list[dict[str, Any]]:
    sim = Simulation(compressor or TopK(0.05, **LIKE), workers)
    for step in range(steps):
        sim.step(draw(step, workers))
    return [one.state_dict() for one in sim.compressors]


def total(states: list[dict[str, Any]], name: str, key: str) -> Any:
    return sum(np.asarray(state["memory"][name][key], np.float64) for state in states)


@pytest.mark.parametrize("compressor", [TopK(0.05, **LIKE), DGC(0.05, **LIKE)], ids=lambda it: it.name)
@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 2), (2, 5), (4, 4), (1, 3), (7, 3)])
def test_nothing_is_lost(compressor: Any, before: int, after: int) -> None:
    states = saved(before, compressor=compressor)
    untouched = pickle.dumps(states)
    result = redistribute(states, after)
    assert pickle.dumps(states) == untouched
    assert [(state["rank"], state["workers"]) for state in result] == [(rank, after) for rank in range(after)]
    for name in SHAPES:
        for key in states[0]["memory"][name]:
            sums = total(states, name, key), total(result, name, key)
            assert np.abs(sums[0]).max() > 0
            if after >= before:
                np.testing.assert_array_equal(*sums)
            else:
                np.testing.assert_allclose(*sums, rtol=0, atol=1e-6 * np.abs(sums[0]).max())


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 4)])
def test_training_goes_on_with_the_step_and_all_that_was_held_back(before: int, after: int) -> None:
    states = saved(before)
    sim = Simulation(TopK(0.05, **LIKE), after)
    for compressor, state in zip(sim.compressors, redistribute(states, after), strict=True):
        compressor.load_state_dict(state)
    given = draw(9, after)
    means = sim.step(given)
    for name in SHAPES:
        sent = after * means[name].reshape(-1).astype(np.float64)
        came = total(states, name, "residual") + sum(array.reshape(-1).astype(np.float64) for array in given[name])
        left = total([one.state_dict() for one in sim.compressors], name, "residual")
        np.testing.assert_allclose(sent + left, came, rtol=0, atol=1e-5 * np.abs(came).max())
    assert {one.state_dict()["step"] for one in sim.compressors} == {3}


LGC: dict[str, Any] = {"name": "lgc", "ratio": 0.3, **LEARNS, "train_steps": 3, "floor": False, "dense": []}
TWO_LEVEL = {"name": "two-level", "compressor": {"name": "topk", "ratio": 0.05}, "ranks_per_node": 2}


@pytest.mark.parametrize(
    ("configuration", "nodes"),
    [
        ({"name": "sidco", "ratio": 0.05}, 1),
        ({"name": "fft"}, 1),
        ({"name": "shared-topk", "ratio": 0.05}, 1),
        ({"name": "topk", "ratio": 0.05, "aggregate": "reduce-scatter"}, 1),
        (TWO_LEVEL, 1),
        (TWO_LEVEL, 2),
        (LGC, 1),
        ({**LGC, "variant": "gather"}, 1),
    ],
    ids=str,
)
def test_other_memories_keep_their_sum_too(configuration: dict[str, Any], nodes: int) -> None:
    """And it is what the next step begins with, on one node or on two."""
    before = Simulation(make(configuration), 4, nodes)
    for step in range(8 if configuration["name"] == "lgc" else 2):
        before.step(draw(step, 4))
    states = [one.state_dict() for one in before.compressors]
    if configuration["name"] == "lgc":
        assert before.compressors[0].stats()["lgc"]["phase"] == "learned"
    for after, nodes_after in ((1, 1), (2, 1), (2, 2), (3, 1), (6, 2)):
        result = redistribute(states, after)
        for name in SHAPES:
            sums = total(states, name, "residual"), total(result, name, "residual")
            np.testing.assert_allclose(*sums, rtol=0, atol=1e-6 * np.abs(sums[0]).max())
        sim = Simulation(make(configuration), after, nodes_after)
        for compressor, state in zip(sim.compressors, result, strict=True):
            compressor.load_state_dict(state)
        given = draw(99, after)
        means = sim.step(given)
        for name in SHAPES:
            came = total(states, name, "residual") + sum(array.reshape(-1).astype(np.float64) for array in given[name])
            left = total([one.state_dict() for one in sim.compressors], name, "residual")
            sent = after * means[name].reshape(-1).astype(np.float64)
            np.testing.assert_allclose(sent + left, came, rtol=0, atol=1e-6 * np.abs(came).max())


def test_what_cannot_be_redistributed() -> None:
    states, later = saved(2), saved(2, steps=3)
    with pytest.raises(ValueError, match="no state"):
        redistribute([], 2)
    with pytest.raises(TypeError, match="not a compressor's state"):
        redistribute([{"step": 1}], 2)
    with pytest.raises(ValueError, match=r"state 0 of 1 is rank 0's of 2"):
        redistribute(states[:1], 2)
    with pytest.raises(ValueError, match=r"state 0 of 2 is rank 1's of 2"):
        redistribute(states[::-1], 2)
    with pytest.raises(ValueError, match=r"differ in 'step' \(2 and 3\)"):
        redistribute([states[0], later[1]], 2)
    with pytest.raises(ValueError, match="workers must be"):
        redistribute(states, 0)
    shorter = copy.deepcopy(states)
    shorter[1]["memory"]["head"]["residual"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="different parameters"):
        redistribute([seal(state) for state in shorter], 2)
