"""The momentum of parameters that are left to Horovod: part of the state, without a trace of steps that are none."""

import copy
from typing import Any

import numpy as np
import pytest

from hvd_compress.state_format import seal
from tests.contract.configurations import algorithm, memory, parameters, simulation
from tests.gradients import gradient

SIZES = {"weight": 3000, "bias": 40}
applied = parameters(lambda compressor: compressor.mean_momentum() is not None)
"""For compressors that have a momentum of means; the bias is below ``LEAST`` elements, and left to Horovod."""
LEAST = 100


def gradients(step: int, workers: int = 2) -> dict[str, list[np.ndarray]]:
    return {name: [gradient("laplace", size, step, rank) for rank in range(workers)] for name, size in SIZES.items()}


def run(sim: Any, steps: range) -> list[np.ndarray]:
    return [sim.step(gradients(step))["bias"] for step in steps]


def momentum(sim: Any) -> np.ndarray:
    """The bias's, which all workers have alike."""
    first, *others = (memory(compressor, "bias")["mean_momentum"] for compressor in sim.compressors)
    for other in others:
        np.testing.assert_array_equal(other, first)
    return first


@applied
def test_is_that_of_the_mean(configuration: dict[str, Any]) -> None:
    expected = np.zeros(SIZES["bias"], np.float32)
    sim = simulation(configuration, 2, min_numel=LEAST)
    compressor = algorithm(sim.compressors[0])
    beta = np.float32(compressor.momentum)
    for step, given in enumerate(run(sim, range(4))):
        mean = np.mean(gradients(step)["bias"], axis=0)
        expected = beta * expected + mean
        np.testing.assert_allclose(given, mean + beta * expected if compressor.nesterov else expected, rtol=1e-5)
    np.testing.assert_allclose(momentum(sim), expected, rtol=1e-5)


@applied
def test_is_the_receivers_own(configuration: dict[str, Any]) -> None:
    """Whoever clips or scales what was handed out in place, as optimizers do, changes no momentum."""
    sims = [simulation(configuration, 2, min_numel=LEAST) for _ in range(2)]
    for step in range(3):
        run(sims[0], range(step, step + 1))
        sims[1].step(gradients(step))["bias"][:] = np.nan
    np.testing.assert_array_equal(momentum(sims[0]), momentum(sims[1]))


@pytest.mark.parametrize("bad", ["weight", "bias"])
@applied
def test_a_step_that_is_not_finite_leaves_no_trace(configuration: dict[str, Any], bad: str) -> None:
    sim = simulation(configuration, 2, min_numel=LEAST)
    run(sim, range(2))
    before = momentum(sim)
    spoilt = gradients(2)
    spoilt[bad][1][3] = np.inf
    sim.step(spoilt)
    np.testing.assert_array_equal(momentum(sim), before)


@applied
def test_a_step_that_is_discarded_leaves_no_trace(configuration: dict[str, Any]) -> None:
    sim, other = simulation(configuration, 2, min_numel=LEAST), simulation(configuration, 2, min_numel=LEAST)
    for one in (sim, other):
        run(one, range(2))
    sim.compressors[1].discard()
    before = momentum(sim)
    (given,) = run(sim, range(2, 3))
    np.testing.assert_array_equal(momentum(sim), before)
    (expected,) = run(other, range(2, 3))
    np.testing.assert_array_equal(given, expected)  # its mean is given as usual


def restored(sim: Any, states: list[dict[str, Any]]) -> Any:
    for compressor, state in zip(sim.compressors, states, strict=True):
        compressor.load_state_dict(state)
    return sim


@applied
def test_goes_on_from_a_checkpoint(configuration: dict[str, Any]) -> None:
    sim = simulation(configuration, 2, min_numel=LEAST)
    run(sim, range(3))
    again = restored(
        simulation(configuration, 2, min_numel=LEAST), [compressor.state_dict() for compressor in sim.compressors]
    )
    for left, right in zip(run(sim, range(3, 6)), run(again, range(3, 6)), strict=True):
        np.testing.assert_array_equal(left, right)


@applied
def test_a_flushed_state_serves_every_rank(configuration: dict[str, Any]) -> None:
    """A flush makes the workers' momenta one: it moves the weights as their own would have."""
    sim, other = simulation(configuration, 2, min_numel=LEAST), simulation(configuration, 2, min_numel=LEAST)
    for one in (sim, other):
        run(one, range(3))
    sim.compressors[0].flush()
    sim.step(gradients(3))
    other.step(gradients(3))
    own = [memory(compressor, "weight")["momentum"] for compressor in other.compressors]
    flushed = memory(sim.compressors[0], "weight")
    np.testing.assert_allclose(flushed["momentum"], np.mean(own, axis=0), rtol=1e-5, atol=1e-6)
    assert flushed["momentum"].any()
    assert not flushed["velocity"].any()
    again = restored(simulation(configuration, 2, min_numel=LEAST), [sim.compressors[0].state_dict()] * 2)
    for step in range(4, 6):
        left, right = sim.step(gradients(step)), again.step(gradients(step))
        for name in SIZES:
            np.testing.assert_array_equal(left[name], right[name])


@applied
def test_a_momentum_that_has_no_parameter_is_refused(configuration: dict[str, Any], scheduler: str) -> None:
    """A graph has it for a call that may be traced later."""
    sim = simulation(configuration, 2, min_numel=LEAST)
    run(sim, range(2))
    states = [compressor.state_dict() for compressor in sim.compressors]
    for change, message in (("size", "momentum of 'bias' has shape"), ("name", "this model lacks")):
        if (change, scheduler) == ("name", "graph"):
            continue
        changed = copy.deepcopy(states)
        for state in changed:
            array = state["memory"].pop("bias")["mean_momentum"]
            if change == "size":
                state["memory"]["bias"] = {"mean_momentum": array[1:]}
            else:
                state["memory"]["other"] = {"mean_momentum": array}
        changed = [seal(state) for state in changed]
        with pytest.raises(ValueError, match=message):
            run(restored(simulation(configuration, 2, min_numel=LEAST), changed), range(2, 3))
