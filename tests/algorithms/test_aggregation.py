"""Entries that are summed on their way: nothing is lost, and what a worker sends does not grow with their number."""

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import DGC, SIDCo, Simulation, Sparsifier, TopK, WarmUp
from tests.algorithms.skews import SKEWS
from tests.gradients import gradient
from tests.recording import Recorder


def held(sim: Simulation, key: str = "residual") -> np.ndarray:
    return sum(c.state_dict()["memory"]["w"][key].astype(np.float64) for c in sim.compressors)


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("make", [TopK, SIDCo], ids=lambda make: make.__name__)
def test_nothing_is_lost(make: Any, skew: str, workers: int) -> None:
    """Integers, whose sums and quotients are exact in float32: what has come in, and N times the means that have gone
    out and all memories, are the same to the last bit."""
    sim = Simulation(make(0.03, aggregate="reduce-scatter", min_numel=1), workers)
    brought, sent = np.zeros(5003), np.zeros(5003)
    for step in range(6):
        gradients = SKEWS[skew](5003, workers, step)
        brought += gradients.sum(0, dtype=np.float64)
        mean = sim.step({"w": [g[None] for g in gradients]})["w"][0]
        sent += workers * mean.astype(np.float64)
        np.testing.assert_array_equal(sent + held(sim), brought)


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "float16", "range8"])
@pytest.mark.parametrize("workers", [3, 6])
def test_nothing_but_rounding_is_lost(wire: str, workers: int) -> None:
    """Numbers of any size; a memory rounds what is added to it to float32, once a step and worker at most."""
    sim = Simulation(TopK(0.03, aggregate="reduce-scatter", wire=wire, min_numel=1), workers)
    brought, sent, bound = np.zeros(5003), np.zeros(5003), 0.0
    for step in range(6):
        gradients = np.array([gradient("laplace", 5003, step, rank) for rank in range(workers)])
        brought += gradients.sum(0, dtype=np.float64)
        sent += workers * sim.step({"w": [g[None] for g in gradients]})["w"][0].astype(np.float64)
        bound += (workers + 1) * np.spacing(np.float32(np.abs(brought).max()))
        assert np.abs(sent + held(sim) - brought).max() <= bound


def test_momentum_is_kept_of_what_found_no_room() -> None:
    """DGC clears the momentum of what it sends. Entries that stay behind keep theirs."""
    sim = Simulation(DGC(16 / 320, aggregate="reduce-scatter", min_numel=1), 2)
    rows = np.zeros((2, 1, 320), np.float32)
    rows[0, 0, 16:32] = np.arange(16, 0, -1)  # all in the region of worker 1: room for 10
    sim.step({"w": list(rows)})
    memory = sim.compressors[0].state_dict()["memory"]["w"]
    for array in memory.values():
        np.testing.assert_array_equal(array[16:32], [0] * 10 + [6, 5, 4, 3, 2, 1])


def test_means_are_the_largest_sums() -> None:
    """Of each region: entries of 32 elements in 2 regions of 16, k = 4."""
    sim = Simulation(TopK(4 / 32, aggregate="reduce-scatter", min_numel=1), 2)
    first, second = np.zeros((2, 1, 32), np.float32)
    first[0, [0, 1, 17, 20]] = [4, -3, 2, 1]
    second[0, [0, 2, 17, 18]] = [-4, 2, 2, 4]
    mean = sim.step({"w": [first, second]})["w"][0]
    expected = np.zeros(32)
    expected[[1, 2, 17, 18]] = [-1.5, 1, 2, 2]
    np.testing.assert_array_equal(mean, expected)
    rest = held(sim)
    assert rest[20] == 1
    assert not rest[[0, 1, 2, 17, 18]].any()


@pytest.mark.parametrize("make", [TopK, SIDCo, DGC], ids=lambda make: make.__name__)
def test_bytes_do_not_grow(make: Any, recorder: Recorder) -> None:
    size, totals = 80_000, []
    for workers in (4, 16):
        recorder.clear()
        sim = Simulation(make(0.1, aggregate="reduce-scatter"), workers)
        sim.step({"w": [gradient("laplace", size, rank)[None] for rank in range(workers)]})
        rows, payload = (post.array for post in recorder.of(0))
        totals.append((rows.nbytes, workers * payload.nbytes))
        assert rows.nbytes == pytest.approx(1.25 * 8000 * 6, rel=0.01)
        assert workers * payload.nbytes == pytest.approx(8000 * 6, rel=0.02)
    assert totals[0] == pytest.approx(totals[1], rel=0.02)


@given(size=st.integers(1, 400), workers=st.integers(1, 5), ratio=st.floats(0.001, 1), seed=st.integers(0, 2**31))
def test_any_size(size: int, workers: int, ratio: float, seed: int) -> None:
    sim = Simulation(TopK(ratio, aggregate="reduce-scatter", min_numel=1), workers)
    given = np.random.default_rng(seed).integers(-99, 99, (workers, 1, size)) * 60.0
    sent = workers * sim.step({"w": list(given)})["w"][0].astype(np.float64)
    np.testing.assert_allclose(sent + held(sim), given.sum((0, 1)), rtol=1e-6, atol=1e-3)


def test_a_sum_that_no_memory_can_hold() -> None:
    """Is a step that is skipped: everywhere, and once."""
    sim = Simulation(TopK(8 / 64, aggregate="reduce-scatter", min_numel=1), 4)
    rows = np.zeros((4, 1, 64), np.float32)
    rows[:, 0, :3] = [3e38, 3e38, 2e38]  # an owner sends two sums, and would keep the third
    assert np.isnan(sim.step({"w": list(rows)})["w"]).all()
    assert not held(sim).any()
    assert [c.stats()["total"]["skipped_steps"] for c in sim.compressors] == [1] * 4
    assert np.isfinite(sim.step({"w": list(rows / 8)})["w"]).all()


@given(size=st.integers(1, 400), workers=st.integers(1, 9))
def test_everything_is_sent_at_a_ratio_of_one(size: int, workers: int) -> None:
    sim = Simulation(TopK(1.0, aggregate="reduce-scatter", min_numel=1), workers)
    given = np.random.default_rng(size).integers(-99, 99, (workers, 1, size)) * 1.0
    mean = sim.step({"w": list(given)})["w"]
    np.testing.assert_allclose(mean, given.mean(0), rtol=1e-6)
    assert not held(sim).any() or workers & (workers - 1)


SLOW, FAST = (1e8, 1e-4), (1e11, 1e-4)


def ways(compressor: Sparsifier, workers: int) -> set[str]:
    sim = Simulation(compressor, workers)
    sim.step({"w": [gradient("laplace", 40_000, rank)[None] for rank in range(workers)]})
    (found,) = {tuple(c.stats()["aggregate"].items()) for c in sim.compressors}
    return {way for _, way in found}


@pytest.mark.parametrize(
    ("workers", "link", "way"),
    [(2, SLOW, "all-gather"), (16, SLOW, "reduce-scatter"), (16, FAST, "all-gather"), (1, SLOW, "all-gather")],
)
def test_auto_takes_what_the_model_says(
    workers: int, link: tuple[float, float], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hvd_compress"):
        assert ways(TopK(0.1, aggregate="auto", link=link), workers) == {way}
    assert any(f"{way} among {workers} workers" in message for message in caplog.messages)


def test_auto_follows_a_schedule() -> None:
    """Many entries by way of their owners, and few by an all-gather."""
    sim = Simulation(TopK(WarmUp(0.001, every=1), aggregate="auto", link=SLOW), 4)
    found = []
    for step in range(5):
        sim.step({"w": [gradient("laplace", 40_000, step, rank)[None] for rank in range(4)]})
        found += sim.compressors[0].stats()["aggregate"].values()
    assert found == sorted(found, reverse=True)
    assert set(found) == {"reduce-scatter", "all-gather"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"aggregate": "gather"}, ValueError, "aggregate must be one of 'all-gather'"),
        ({"link": 1e9}, TypeError, "link must be bits a second and seconds"),
        ({"link": (0, 1e-5)}, ValueError, "link's bits a second"),
        ({"link": (1e9, -1)}, ValueError, "link's latency"),
    ],
    ids=str,
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TopK(**arguments)
