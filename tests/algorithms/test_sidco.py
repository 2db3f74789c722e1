"""SIDCo end to end: how many elements it sends, of what."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hvd_compress import SIDCo
from hvd_compress.algorithms.sid_thresholds import FITS
from tests import wire
from tests.gradients import gradient
from tests.recording import Recorder
from tests.simulation import Simulation

SIZE = 400_000


def sent(recorder: Recorder, compressor: SIDCo, values: np.ndarray) -> dict[int, float]:
    """Entries of the payload of one step from an empty memory."""
    recorder.clear()
    Simulation(compressor, 1).step({"w": [values]})
    (payload,) = recorder.payloads(0)
    return wire.read(payload.tobytes())[1]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("ratio", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("distribution", ["normal", "laplace", "heavy_tailed", "mixed_scales", "rising"])
def test_sends_about_k_and_the_largest(recorder: Recorder, fit: str, ratio: float, distribution: str) -> None:
    values = gradient(distribution, SIZE, 1)
    entries = sent(recorder, SIDCo(ratio, fit=fit), values)
    # 256 hits in the sample: 6 % is one standard deviation, more where a cache line's neighbours are alike
    assert 0.7 * ratio * SIZE < len(entries) <= 1.25 * ratio * SIZE + 8
    order = np.sort(np.abs(values))[::-1]
    assert min(map(abs, entries.values())) == order[len(entries) - 1]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", ["auto", "adaptive", 1, 2, 4])
@pytest.mark.parametrize(
    ("distribution", "least"),
    [("zeros", 0), ("one_hot", 1), ("nearly_all_zero", 80), ("mostly_zero", 300), ("constant", 1250), ("ties", 1250)],
)
def test_gradients_that_no_distribution_fits(
    recorder: Recorder, fit: str, stages: Any, distribution: str, least: int
) -> None:
    """All zero, all equal, nearly all zero: neither nothing nor everything is sent (k = 1,000)."""
    values = gradient(distribution, 100_000, 5)
    entries = sent(recorder, SIDCo(0.01, fit=fit, stages=stages), values)
    assert least <= len(entries) <= 1256
    assert all(entries.values())
    if entries:
        kept = np.abs(list(entries.values())).min()
        assert (np.abs(np.delete(values, list(entries))) <= kept).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", ["auto", "adaptive", 1, 3])
@pytest.mark.parametrize("distribution", ["constant", "normal", "ties", "one_hot"])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_small_gradients_do_not_starve(recorder: Recorder, fit: str, stages: Any, distribution: str, size: int) -> None:
    """k is at least 1, and something is sent in every step however far below 1 ratio x size is."""
    entries = sent(recorder, SIDCo(0.001, fit=fit, stages=stages, min_numel=1), gradient(distribution, size, 2))
    assert 1 <= len(entries) <= 8


def test_adaptive_changes_the_number_of_stages() -> None:
    """One exponential stage sends far too little of a normal distribution: stages are added, one at a time."""
    sim = Simulation(SIDCo(0.01, stages="adaptive", error_feedback=False), 1)
    stages = []
    for step in range(15):
        sim.step({"w": [gradient("normal", 50_000, step)]})
        (state,) = sim.compressors[0].state_dict()["algorithm"]
        stages.append(state.get("stages", 1))
    assert stages[3] == 1
    assert max(stages) > 1
    assert all(abs(b - a) <= 1 for a, b in pairwise(stages))


def test_adaptation_ignores_skipped_steps() -> None:
    sim = Simulation(SIDCo(0.01, stages="adaptive", min_numel=1), 1)
    for step in range(8):
        values = gradient("laplace", 5000, step)
        values[0] = np.nan
        sim.step({"w": [values]})
    assert sim.compressors[0].state_dict()["algorithm"] == [{}]


def test_workers_sample_differently_but_repeatably(recorder: Recorder) -> None:
    """The same gradient on two workers: two thresholds; the same seed: the same bytes; another seed: others."""

    def payloads(seed: int) -> list[bytes]:
        recorder.clear()
        values = gradient("heavy_tailed", SIZE, 1)
        Simulation(SIDCo(0.01, seed=seed), 2).step({"w": [values, values]})
        return [recorder.payloads(rank)[0].tobytes() for rank in range(2)]

    first = payloads(0)
    assert first[0] != first[1]
    assert payloads(0) == first
    assert payloads(1) != first
