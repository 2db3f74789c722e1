"""Nothing is lost: what a worker compresses is what the receivers reconstruct plus what stays in its memory."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests import wire
from tests.contract.configurations import (
    compressed_input,
    exact,
    held_back,
    memory,
    parameters,
    product,
    random,
    remembers,
    simulation,
    sparse,
    with_ratio,
)
from tests.gradients import DISTRIBUTIONS, gradient
from tests.recording import Recorder
from tests.simulation import Simulation

SIZES = [37, 1, 140_001]
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


def assert_conserved(a: np.ndarray, decoded: np.ndarray, rest: np.ndarray, exact: bool) -> None:
    """``a == decoded + rest``: exactly, in real numbers (float64 holds the sum of two float32 of the same element
    exactly unless they are more than 2**29 apart). Only float16 saturates (at 65,504); the difference is then rounded
    to float32, by half a unit in the last place at most."""
    total = decoded.astype(np.float64) + rest.astype(np.float64)
    if exact:
        np.testing.assert_array_equal(total, a.astype(np.float64))
    else:
        bound = np.where(np.abs(a) > 65504, np.spacing(np.abs(a)).astype(np.float64) / 2, 0.0)
        assert (np.abs(total - a) <= bound).all()


@product("distribution", DISTRIBUTIONS, lambda c: sparse(c) and remembers(c))
def test_every_worker_keeps_what_its_payload_does_not_carry(
    configuration: dict[str, Any], distribution: str, recorder: Recorder
) -> None:
    """Step for step and for each of 2 workers, with payloads read by the tests' own reader; and the mean is the sum of
    the payloads in rank order, each scaled by 1/N, in float32."""
    workers, size = 2, 3001
    sim = simulation(configuration, workers)
    for step in range(3):
        gradients = [gradient(distribution, size, step, rank) for rank in range(workers)]
        before = [memory(c, "w") for c in sim.compressors]
        recorder.clear()
        mean = sim.step({"w": gradients})["w"]
        inputs = [compressed_input(c, *args) for c, *args in zip(sim.compressors, before, gradients, strict=True)]
        if np.isnan(mean).all():  # DGC's momentum would overflow one day where the gradients are huge
            assert (configuration["name"], distribution) == ("dgc", "huge")
            for compressor, held in zip(sim.compressors, before, strict=True):
                for key, array in memory(compressor, "w").items():
                    np.testing.assert_array_equal(array, held.get(key, 0))
            return
        expected = np.zeros(size, np.float32)
        for rank, (compressor, a) in enumerate(zip(sim.compressors, inputs, strict=True)):
            (payload,) = recorder.payloads(rank)
            decoded = wire.dense(payload)
            assert_conserved(a, decoded, held_back(compressor, "w"), exact=compressor.wire != "float16")
            expected += decoded * np.float32(1 / workers)
        np.testing.assert_array_equal(mean, expected)


@product("size", SIZES, lambda c: sparse(c) and remembers(c))
def test_one_worker(configuration: dict[str, Any], size: int) -> None:
    """With one worker the mean is what it decoded itself."""
    sim = simulation(configuration, 1)
    (compressor,) = sim.compressors
    for step in range(3):
        g = gradient("mixed_scales", size, step)
        a = compressed_input(compressor, memory(compressor, "w"), g)
        mean = sim.step({"w": [g]})["w"]
        assert_conserved(a, mean, held_back(compressor, "w"), exact=True)


@product("workers", [3, 1, 2, 8], lambda c: remembers(c) and exact(c))
def test_sum_over_workers(configuration: dict[str, Any], workers: int) -> None:
    """For any compressor with memory: N x mean + the memories = the sum of what was compressed, within the rounding of
    N float32 additions."""
    size = 5000
    sim = simulation(configuration, workers)
    for step in range(4):
        gradients = [gradient("laplace", size, step, rank) for rank in range(workers)]
        inputs = [compressed_input(c, memory(c, "w"), g) for c, g in zip(sim.compressors, gradients, strict=True)]
        mean = sim.step({"w": gradients})["w"].astype(np.float64)
        rest = sum(held_back(c, "w").astype(np.float64) for c in sim.compressors)
        total = sum(a.astype(np.float64) for a in inputs)
        largest = max(np.abs(a).max() for a in inputs)
        np.testing.assert_allclose(workers * mean + rest, total, rtol=0, atol=(workers + 2) ** 2 * largest * 2.0**-23)


@parameters(lambda c: remembers(c) and random(c))
def test_random_rounding_is_no_loss(configuration: dict[str, Any]) -> None:
    """What is sent and what is held add up to what was compressed on average, and what is held is not random."""
    size, draws = 500, 300
    gradients = [gradient("laplace", size, 0, rank) for rank in range(2)]
    total, squares = np.zeros(size), np.zeros(size)
    for seed in range(draws):
        sim = simulation(configuration, 2, seed=seed)
        found = 2 * sim.step({"w": gradients})["w"].astype(np.float64)
        found += sum(held_back(c, "w").astype(np.float64) for c in sim.compressors)
        total += found
        squares += found**2
    mean = total / draws
    deviation = np.sqrt(np.maximum(squares / draws - mean**2, 0) / draws)
    largest = max(np.abs(g).max() for g in gradients)
    assert (np.abs(mean - sum(gradients)) <= 8 * deviation + 0.02 * largest).all()


@parameters(lambda c: sparse(c) and remembers(c) and c.wire == "float32")
@given(
    values=st.lists(arrays(np.float32, st.integers(1, 300), elements=FINITE), min_size=1, max_size=2),
    ratio=st.floats(1e-4, 1),
)
def test_any_values_and_ratio(configuration: dict[str, Any], values: list[np.ndarray], ratio: float) -> None:
    sim = Simulation(with_ratio(configuration, ratio), 1)
    (compressor,) = sim.compressors
    size = len(values[0])
    for value in values:
        g = np.resize(value, size).astype(np.float32)
        a = compressed_input(compressor, memory(compressor, "w"), g)
        mean = sim.step({"w": [g]})["w"]
        # float32 values travel unchanged: every element is either here or there, bit for bit
        rest = held_back(compressor, "w")
        np.testing.assert_array_equal(np.where(mean != 0, mean, rest), a)
        assert not np.any((mean != 0) & (rest != 0))


@parameters(lambda c: sparse(c) and remembers(c))
def test_everything_is_sent_in_the_end(configuration: dict[str, Any]) -> None:
    """Error feedback only delays: with no new gradients the memory drains into the means. (DGC's momentum goes on
    adding to it for a while, and what it sends is more than the gradient.)"""
    size = 400
    sim = Simulation(with_ratio(configuration, 0.05), 1)
    g = gradient("normal", size, 0)
    total = sim.step({"w": [g]})["w"].astype(np.float64)
    for _ in range(400):
        total += sim.step({"w": [np.zeros(size, np.float32)]})["w"]
        if not held_back(sim.compressors[0], "w").any():
            break
    if "momentum" not in memory(sim.compressors[0], "w"):
        np.testing.assert_allclose(total + held_back(sim.compressors[0], "w"), g, rtol=1e-5)
    assert np.abs(held_back(sim.compressors[0], "w")).max() < 1e-2 * np.abs(g).max()
