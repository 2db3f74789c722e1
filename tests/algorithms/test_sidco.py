"""SIDCo end to end: how many elements it sends, of what."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hvd_compress import SIDCo, kernels
from hvd_compress.algorithms.selection import design_effect
from hvd_compress.algorithms.sid_thresholds import FITS
from hvd_compress.exchange import Bucket
from hvd_compress.memory import Memory
from tests import wire
from tests.algorithms.test_sidco_fits import paper
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


def above(compressor: SIDCo, values: np.ndarray, seed: int = 0) -> int:
    """How many elements exceed the threshold of the first step."""
    memory = Memory(kernels.get(), len(values))
    memory.begin([values])
    bucket = Bucket("w", len(values), memory, kernels.get(), rank=0, workers=1, seed=seed)
    threshold, _ = compressor._threshold(bucket, float(compressor.ratio))  # type: ignore[arg-type]
    return int(np.count_nonzero(np.abs(values) > threshold))


@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize("rows", ["lognormal", "few"])
def test_large_elements_in_rows(width: int, rows: str) -> None:
    """As in the gradient of an embedding, where they fill whole cache lines, by which the sample is taken."""
    ratio, size = 0.01, 512_000
    for seed in range(6):
        rng = np.random.default_rng(seed)
        count = size // width
        scales = np.exp(2 * rng.standard_normal(count)) if rows == "lognormal" else (rng.random(count) < 0.02) + 0.003
        values = (rng.standard_normal((count, width)) * scales[:, None]).astype(np.float32).reshape(-1)
        assert 0.8 < above(SIDCo(ratio), values, seed) / (ratio * size) < 1.2


def test_design_effect() -> None:
    rng = np.random.default_rng(0)
    magnitudes = np.abs(rng.standard_normal(64_000, dtype=np.float32))
    assert design_effect(magnitudes, 2.0) == pytest.approx(1, abs=0.15)
    whole = np.repeat((rng.random(4000) < 0.05).astype(np.float32), 16)
    assert design_effect(whole, 0.5) == pytest.approx(16, rel=0.01)
    assert design_effect(whole, 2.0) == design_effect(whole[:31], 0.5) == 1


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", [1, 2, 3, "adaptive"])
@pytest.mark.parametrize("distribution", ["laplace", "normal", "heavy_tailed"])
def test_the_paper_s_estimator(fit: str, stages: int | str, distribution: str) -> None:
    """Whatever it is: too many, or none at all."""
    ratio = 0.01
    values = gradient(distribution, 200_000, 3)
    count = 1 if stages == "adaptive" else int(stages)
    expected = np.count_nonzero(np.abs(values) > paper(values, fit, ratio, count, corrected=False, closed=True))
    found = above(SIDCo(ratio, fit=fit, stages=stages, estimator="paper"), values)
    assert found == pytest.approx(expected, rel=1e-3, abs=2)


def test_the_paper_s_estimator_has_no_fall_back(recorder: Recorder) -> None:
    """Of equal magnitudes nothing exceeds the threshold of an exponential; the sample's quantile is not the paper's."""
    values = gradient("constant", 100_000, 5)
    assert len(sent(recorder, SIDCo(0.01, stages=1), values)) > 1000
    assert not sent(recorder, SIDCo(0.01, stages=1, estimator="paper"), values)


def test_the_paper_has_no_automatic_stages() -> None:
    with pytest.raises(ValueError, match="estimator='paper' takes stages='adaptive' or a number"):
        SIDCo(estimator="paper")
