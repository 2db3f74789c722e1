"""``Auto`` on simulated workers, under both schedulers, with clocks that the test sets."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import DGC, LGC, Auto, CorruptPayload, Dense, Half, QSGDMaxNorm, SIDCo, TopK
from hvd_compress.auto.candidates import by_accuracy
from hvd_compress.auto.choosing import Choosing
from hvd_compress.auto.trials import BUDGET, CHECK_EVERY, FLUSH
from hvd_compress.state_format import seal
from tests.gradients import gradient
from tests.simulation import GraphSimulation, Simulation

SHAPES = {"a": (30, 50), "bias": (7,), "b": (40, 60)}
WORKERS = 3
MILLISECONDS = {"Dense": 40.0, "Half": 30.0, "QSGDMaxNorm": 20.0, "SIDCo": 10.0, "TopK": 15.0}


def gradients(step: int, workers: int = WORKERS) -> dict[str, list[np.ndarray]]:
    return {
        name: [gradient("laplace", int(np.prod(shape)), step, rank, i).reshape(shape) for rank in range(workers)]
        for i, (name, shape) in enumerate(SHAPES.items())
    }


class Training:
    """Steps of simulated workers; ``milliseconds`` says how long a step takes with each candidate, by class. The clock
    of worker r stands ``r * 1e9`` seconds off and goes ``1 + r`` times as fast."""

    def __init__(self, scheduler: Any, auto: Auto, milliseconds: dict[str, float] | None = None) -> None:
        self.sim = scheduler(auto, WORKERS)
        self.milliseconds = milliseconds or MILLISECONDS
        self.step_number = 0
        self._now = 0.0
        for rank, compressor in enumerate(self.sim.compressors):
            compressor.choosing.stopwatch.clock = lambda rank=rank: rank * 1e9 + (1 + rank) * self._now

    @property
    def auto(self) -> Any:
        return self.sim.compressors[0]

    def candidate(self) -> str:
        """What the next step runs."""
        choosing = self.auto.choosing
        segment = choosing.trials.at(self.step_number)
        return FLUSH if segment.kind == FLUSH else type(choosing.algorithms[segment.candidate]).__name__

    def step(self, given: dict[str, list[np.ndarray]] | None = None) -> dict[str, np.ndarray]:
        name = self.candidate() if self.step_number else FLUSH
        means = self.sim.step(given or gradients(self.step_number))
        self._now += self.milliseconds.get(name, 40.0) / 1000
        self.step_number += 1
        return means

    def until(self, name: str) -> None:
        """Run steps until the next one is of the candidate ``name``."""
        for _ in range(2 * BUDGET):
            if self.step_number and self.candidate() == name:
                return
            self.step()
        raise AssertionError(f"no step of {name}")

    def reach(self, name: str) -> None:
        """Run steps until the next one is of the candidate, or a flush of what SIDCo has held back."""
        if name == FLUSH:
            self.milliseconds = {**self.milliseconds, "Dense": 12.0}  # so that there is a second round
            self.until("SIDCo")
            self.step()
        self.until(name)
        if name == "SIDCo":
            self.step()

    def held_back(self) -> dict[str, np.ndarray]:
        """Return the sum of the workers' memories, in float64."""
        states = [compressor.state_dict()["memory"] for compressor in self.sim.compressors]
        return {
            name: sum(state[name]["residual"].astype(np.float64) for state in states).reshape(SHAPES[name])
            for name in states[0]
        }


@pytest.fixture(params=[Simulation, GraphSimulation], ids=["waiting", "graph"])
def scheduler(request: pytest.FixtureRequest) -> Any:
    return request.param


def small(*candidates: Any, **arguments: Any) -> Auto:
    return Auto(list(candidates) or None, min_numel=100, bucket_mb=0.008, **arguments)


@pytest.mark.parametrize("winner", ["Dense", "Half", "QSGDMaxNorm", "SIDCo"])
def test_all_workers_come_to_the_fastest(scheduler: Any, winner: str) -> None:
    """The simulation asserts in every step that all workers have the same means."""
    training = Training(scheduler, small(), {**MILLISECONDS, winner: 5.0})
    for _ in range(BUDGET + CHECK_EVERY):
        training.step()
    reports = [compressor.stats()["auto"] for compressor in training.sim.compressors]
    assert reports[0]["choice"].startswith(winner)
    assert all(report == reports[0] for report in reports)
    seconds = {row["candidate"].partition("(")[0]: row["seconds"] for row in reports[0]["table"]}
    assert seconds[winner] == pytest.approx(WORKERS * 0.005, rel=1e-3)  # by the slowest clock


def test_conservation_across_switches(scheduler: Any) -> None:
    """Candidates that lose nothing: at any time, N times all means and the memories are all gradients so far."""
    training = Training(
        scheduler, small("dense", "topk", "sidco", look_again=100), {"Dense": 10.0, "TopK": 10.0, "SIDCo": 10.0}
    )
    given = {name: np.zeros(shape) for name, shape in SHAPES.items() if name != "bias"}
    means = {name: np.zeros(SHAPES[name]) for name in given}
    kinds = set()
    for step in range(320):
        kinds.add(training.candidate() if step else FLUSH)
        found = training.step()
        for name in given:
            given[name] += np.sum(gradients(step)[name], axis=0, dtype=np.float64)
            means[name] += found[name]
        if step % 20 == 0:
            for name, held in training.held_back().items():
                np.testing.assert_allclose(WORKERS * means[name] + held, given[name], atol=1e-3)
    assert kinds == {FLUSH, "Dense", "TopK", "SIDCo"}
    assert training.auto.choosing.trials.looks >= 2


def test_going_back_to_uncompressed_empties_the_memory(scheduler: Any) -> None:
    training = Training(scheduler, small(), {**MILLISECONDS, "Dense": 1.0})
    training.until("SIDCo")
    training.step()
    assert all(held.any() for held in training.held_back().values())
    training.until("Dense")
    assert not any(held.any() for held in training.held_back().values())
    before = training.step_number
    exact = {name: np.mean(arrays, axis=0, dtype=np.float64) for name, arrays in gradients(before).items()}
    for name, mean in training.step().items():
        np.testing.assert_allclose(mean, exact[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("where", [FLUSH, "Half", "QSGDMaxNorm", "SIDCo"])
def test_a_step_that_is_not_finite_leaves_no_trace(scheduler: Any, where: str) -> None:
    """And the workers still go through the same steps afterwards, to the same choice."""
    training = Training(scheduler, small())
    training.reach(where)
    before = training.held_back()
    given = gradients(training.step_number)
    given["a"][1][0, 0] = np.nan  # which is not in the bucket that reports
    assert np.isnan(training.step(given)["a"]).any()
    for name, held in training.held_back().items():
        np.testing.assert_array_equal(held, before[name])
    for _ in range(35):
        assert all(np.isfinite(mean).all() for mean in training.step().values())
    assert training.auto.stats()["auto"]["trials"] == 1


def test_a_flush_that_is_not_finite_is_repeated(scheduler: Any) -> None:
    training = Training(scheduler, small(), {**MILLISECONDS, "Dense": 11.0})
    training.until("SIDCo")
    training.step()
    training.until(FLUSH)
    for _ in range(3):
        given = gradients(training.step_number)
        given["b"][2][0, 0] = np.inf
        training.step(given)
        assert training.candidate() == FLUSH
    held = training.held_back()
    assert all(array.any() for array in held.values())
    step = training.step_number
    means = training.step()
    for name, array in held.items():
        expected = (np.sum(gradients(step)[name], axis=0, dtype=np.float64) + array) / WORKERS
        np.testing.assert_allclose(means[name], expected, rtol=1e-4, atol=1e-5)
    assert not any(array.any() for array in training.held_back().values())


@pytest.mark.parametrize("where", [FLUSH, "Dense", "Half", "QSGDMaxNorm", "SIDCo"])
def test_flush_on_one_worker_in_any_step(scheduler: Any, where: str) -> None:
    training = Training(scheduler, small())
    training.reach(where)
    training.sim.compressors[2].flush()
    training.step()
    assert not any(held.any() for held in training.held_back().values())
    assert not any(compressor.runtime.flush_requested for compressor in training.sim.compressors)


@pytest.mark.parametrize("where", [FLUSH, "Dense", "Half", "QSGDMaxNorm", "SIDCo"])
def test_discard_on_one_worker_in_any_step(scheduler: Any, where: str) -> None:
    """The request is over with the step, whatever that has: a later one must not be lost."""
    training = Training(scheduler, small())
    training.reach(where)
    before = training.held_back()
    training.sim.compressors[1].discard()
    training.step()
    for name, held in training.held_back().items():
        np.testing.assert_array_equal(held, before[name])
    assert not any(compressor.runtime.discard_requested for compressor in training.sim.compressors)


@pytest.mark.parametrize("interrupted", [8, 24, *(pytest.param(step, marks=pytest.mark.long) for step in (1, 31, 130))])
def test_resuming_is_going_on(scheduler: Any, interrupted: int) -> None:
    training = Training(scheduler, small(look_again=100))
    for _ in range(interrupted):
        training.step()
    states = pickle.loads(pickle.dumps([compressor.state_dict() for compressor in training.sim.compressors]))
    again = Training(scheduler, small(look_again=100))
    again.step_number = interrupted
    for compressor, state in zip(again.sim.compressors, states, strict=True):
        compressor.load_state_dict(state)
    again.candidate = lambda: name  # type: ignore[method-assign] # it knows that only after its first step
    for _ in range(60):
        name = training.candidate()
        found, expected = again.step(), training.step()
        assert {key: mean.tobytes() for key, mean in found.items()} == {
            key: mean.tobytes() for key, mean in expected.items()
        }
    assert again.auto.choosing.trials.looks == training.auto.choosing.trials.looks


def test_another_number_of_workers_begins_a_new_trial() -> None:
    training = Training(Simulation, small())
    training.until("SIDCo")
    training.sim.compressors[0].flush()
    training.step()
    state = training.auto.state_dict()
    sim = Simulation(small(), 2)
    for compressor in sim.compressors:
        compressor.load_state_dict(state)
    sim.step(gradients(0, 2))
    trials = sim.compressors[0].choosing.trials
    assert (trials.looks, trials.samples) == (1, [[], [], [], []])


def test_workers_that_go_on_from_different_trials_are_told() -> None:
    training = Training(Simulation, small("topk", "sidco"))
    states = []
    for _ in range(30):
        training.step()
        states.append(training.auto.state_dict())
    sim = Simulation(small("topk", "sidco"), WORKERS)
    for rank, compressor in enumerate(sim.compressors):
        later = {**training.sim.compressors[rank].state_dict()}
        if rank == 1:
            later["shared"] = states[3]["shared"]
        compressor.load_state_dict(seal(later))
    with pytest.raises(ValueError, match="ranks disagree on the restored memories"):
        sim.step(gradients(30))


def test_it_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    training = Training(Simulation, small())
    with caplog.at_level(logging.INFO, "hvd_compress.auto"):
        for _ in range(BUDGET + 2 * CHECK_EVERY):
            training.step()
    (record,) = caplog.records
    assert record.message.startswith("Auto chose SIDCo(): a step takes Dense() 120 ms, Half() 90 ms")
    assert record.message.endswith("training begins)")


def test_candidates_keep_their_states_apart() -> None:
    """What an algorithm adapts to its gradients is gone when another one has run."""
    training = Training(Simulation, small(SIDCo(0.05, stages="adaptive"), TopK(0.05)))
    training.until("TopK")
    assert "stages" in str(training.auto.state_dict()["algorithm"])
    training.step()
    assert "stages" not in str(training.auto.state_dict()["algorithm"])


def test_candidates_by_accuracy() -> None:
    assert [repr(c) for c in by_accuracy("strict", 2)] == ["Dense()", "Half()"]
    assert [repr(c) for c in by_accuracy("safe", 2)] == ["Dense()", "Half()", "QSGDMaxNorm()", "SIDCo()"]
    assert [repr(c) for c in by_accuracy("safe", 64)] == ["Dense()", "QSGDMaxNorm()", "SIDCo()"]
    assert [repr(c) for c in by_accuracy("safe", 1024)] == ["Dense()", "QSGDMaxNorm()"]
    assert "SIDCo(ratio=0.001)" in [repr(c) for c in by_accuracy("fast", 1024)]


def test_configuration() -> None:
    auto = Auto([Dense(), {"name": "topk", "ratio": 0.1}, "half"], look_again=500)
    assert auto.to_config() == {
        "name": "auto",
        "candidates": [{"name": "dense"}, {"name": "topk", "ratio": 0.1}, {"name": "half"}],
        "look_again": 500,
    }
    again = hvd_compress.from_config(auto.to_config())
    assert repr(again) == repr(auto) == "Auto(candidates=(Dense(), TopK(ratio=0.1), Half()), look_again=500)"
    assert repr(pickle.loads(pickle.dumps(auto))) == repr(auto)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"candidates": "sidco"}, TypeError, "must be a list of compressors"),
        ({"candidates": {"name": "sidco"}}, TypeError, "must be a list of compressors"),
        ({"candidates": []}, ValueError, "at least one compressor"),
        ({"candidates": [SIDCo]}, TypeError, "must be compressors"),
        ({"candidates": ["sidko"]}, ValueError, "did you mean 'sidco'"),
        ({"candidates": [Auto()]}, ValueError, "changes? from phase to phase"),
        ({"candidates": [DGC()]}, ValueError, "use it without Auto"),
        ({"candidates": [SIDCo(seed=3)]}, ValueError, "give seed=3 to Auto itself"),
        ({"candidates": [Half(nonfinite="nan")]}, ValueError, "give nonfinite='nan' to Auto itself"),
        ({"accuracy": "high"}, ValueError, "accuracy must be"),
        ({"look_again": 10}, ValueError, "look_again must be"),
    ],
    ids=str,
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Auto(**arguments)


def test_lgc_is_no_candidate() -> None:
    with pytest.raises(ValueError, match="phase to phase"):
        Auto([Dense(), LGC()])


def test_candidates_without_memory_need_none() -> None:
    auto = Auto([Dense(), QSGDMaxNorm(8)])
    assert not auto.error_feedback
    assert not auto.can_flush
    assert Auto().error_feedback


@pytest.mark.parametrize(
    ("place", "value"), [(0, 0.5), (0, np.nan), (1, -1), (1, 9), (1, np.nan), (2, -0.1), (3, np.inf), (4, np.nan)]
)
def test_reports_that_no_worker_makes(place: int, value: float) -> None:
    choosing = Choosing()
    choosing.stopwatch.times = [0.1, 0.2]
    reports = np.stack([choosing.said(), choosing.said()]).view(np.float64)
    reports[1, place] = value
    with pytest.raises(CorruptPayload, match="report"):
        choosing.hear(0, reports.view(np.uint8))
