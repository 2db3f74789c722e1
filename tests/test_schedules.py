import numpy as np
import pytest

from hvd_compress import Decay, Steps, TopK, WarmUp
from tests.simulation import Simulation


def test_warm_up_is_the_papers() -> None:
    """DGC, section 3.3: 75 %, 93.75 %, 98.4375 %, 99.6 % sparsity in the first epochs, then 99.9 %."""
    schedule = WarmUp(0.001, every=3)
    sparsity = [1 - schedule(step) for step in range(18)]
    expected = np.repeat([0.75, 0.9375, 0.984375, 0.99609375, 0.999, 0.999], 3)
    np.testing.assert_allclose(sparsity, expected, rtol=1e-12)


def test_warm_up_stops_at_final_exactly() -> None:
    assert WarmUp(0.1, start=0.3, factor=0.5, every=1)(1) == 0.15
    assert WarmUp(0.1, start=0.3, factor=0.5, every=1)(2) == 0.1
    assert WarmUp(0.1, start=0.3, factor=0.5, every=1)(10**9) == 0.1
    assert WarmUp(0.25)(0) == 0.25


@pytest.mark.parametrize(("start", "final"), [(0.5, 0.001), (0.001, 0.5), (0.1, 0.1)])
def test_decay_is_a_line_on_a_logarithmic_scale(start: float, final: float) -> None:
    schedule = Decay(start, final, steps=40)
    logs = np.log([schedule(step) for step in range(60)])
    np.testing.assert_allclose(logs[:41], np.linspace(np.log(start), np.log(final), 41), atol=1e-12)
    assert all(schedule(step) == final for step in range(40, 60))


def test_steps() -> None:
    schedule = Steps([0.5, 0.1, 0.01], [2, 5])
    assert [schedule(step) for step in range(7)] == [0.5, 0.5, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert Steps([0.3], [])(100) == 0.3
    assert hash(schedule) == hash(Steps((0.5, 0.1, 0.01), (2, 5)))


@pytest.mark.parametrize("schedule", [WarmUp(0.01, every=2), Decay(0.5, 0.05, 3), Steps((0.2, 0.1), (1,))], ids=repr)
def test_a_compressor_follows_its_schedule(schedule: Decay) -> None:
    size = 1000
    sim = Simulation(TopK(schedule, min_numel=1), 1)
    for step in range(6):
        g = np.random.default_rng(step).standard_normal(size)
        assert np.count_nonzero(sim.step({"w": [g]})["w"]) == round(schedule(step) * size)
