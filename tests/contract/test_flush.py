"""``flush``: the next step sends everything that is held back, whoever asks."""

from typing import Any

import numpy as np

from tests.contract.configurations import (
    compressed_input,
    exact,
    held_back,
    memory,
    parameters,
    product,
    remembers,
    simulation,
)
from tests.gradients import gradient
from tests.recording import Recorder

SIZES = {"a": 3000, "b": 2000, "c": 4100}
ASKING = [(when, *who) for when in (2, 0) for who in ((3, (2,)), (1, (0,)), (3, (0,)), (3, (0, 1, 2)))]
"""The step, the number of workers, and which of them ask."""


def gradients(step: int, workers: int) -> dict[str, list[np.ndarray]]:
    return {
        name: [gradient("laplace", size, step, rank, i) for rank in range(workers)]
        for i, (name, size) in enumerate(SIZES.items())
    }


@product("asking", ASKING, remembers)
def test_one_asks_and_all_send(configuration: dict[str, Any], asking: tuple[int, int, tuple[int, ...]]) -> None:
    when, workers, who = asking
    sim = simulation(configuration, workers, bucket_mb=0.01)
    for step in range(when):
        sim.step(gradients(step, workers))
    given = gradients(when, workers)
    inputs = {
        name: [compressed_input(c, memory(c, name), g) for c, g in zip(sim.compressors, arrays, strict=True)]
        for name, arrays in given.items()
    }
    for rank in who:
        sim.compressors[rank].flush()
    means = sim.step(given)
    for name, arrays in inputs.items():
        expected = np.mean(arrays, axis=0, dtype=np.float64)
        if exact(sim.compressors[0]):
            np.testing.assert_allclose(means[name], expected, rtol=1e-5, atol=1e-5)
        else:  # what the exchange sends is rounded at random, or a code; what was held back comes as it is
            assert np.abs(means[name] - expected).max() <= np.abs(arrays).max()
        for compressor in sim.compressors:
            for key, array in memory(compressor, name).items():
                if key == "momentum":  # goes on, from now on alike, but for workers that have different shares
                    if configuration["name"] == "two-level":
                        continue
                    np.testing.assert_array_equal(array, memory(sim.compressors[0], name)[key])
                else:
                    assert not array.any()
    # it is done once, not in every step from then on
    sim.step(gradients(when + 1, workers))
    if configuration.get("ratio") != 1.0:
        remembering = [held_back(compressor, "b").any() for compressor in sim.compressors]
        assert any(remembering) if configuration["name"] == "two-level" else all(remembering)


@parameters(remembers)
def test_waits_for_a_step_that_counts(configuration: dict[str, Any]) -> None:
    """A step that is skipped sends nothing; the request stands."""
    sim = simulation(configuration, 2)
    sim.step(gradients(0, 2))
    sim.compressors[1].flush()
    bad = gradients(1, 2)
    bad["a"][0][0] = np.nan
    sim.step(bad)
    sim.step(gradients(2, 2))
    assert not any(held_back(c, name).any() for c in sim.compressors for name in SIZES)


@parameters(lambda c: not remembers(c))
def test_nothing_to_do_without_memory(configuration: dict[str, Any], recorder: Recorder) -> None:
    runs = []
    for asks in (False, True):
        recorder.clear()
        sim = simulation(configuration, 2)
        means = []
        for step in range(3):
            if asks:
                sim.compressors[0].flush()
            means += [mean.tobytes() for mean in sim.step(gradients(step, 2)).values()]
        runs.append((means, [(post.form, post.array.tobytes()) for post in recorder.posts]))
    assert runs[0] == runs[1]
