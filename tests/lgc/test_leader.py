"""The rank that trains leaves in phase 2: another one takes its place, and no rank drifts from the others. That means
are the same on all, the simulation sees to."""

from __future__ import annotations

import logging
import os
import signal
import time

import numpy as np
import pytest

from hvd_compress.lgc import inline
from tests.lgc.test_lgc import SMALL, gradients, lgc, phase
from tests.simulation import Simulation

TRAIN_STEPS = SMALL["train_steps"]
LIMIT = 120
"""Seconds in which a process has to have trained."""


@pytest.fixture(autouse=True)
def _learn_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "BATCHES_PER_SAMPLE", 10)


def without_its_leader(trainer: str, left_after: int) -> Simulation:
    """Return a job of two workers that were three: rank 0, which trained, has left after so many steps."""
    sim = Simulation(lgc(trainer=trainer, floor=False), 3)
    run(sim, 0, left_after, workers=3)
    assert phase(sim) == "train"
    assert [c.stats()["lgc"]["trainer"] is not None for c in sim.compressors] == [True, False, False]
    gone = sim.compressors[0]
    sim.change([1, 2], 2)
    gone.learning.supervisor.dismiss()  # its process ends with the worker
    return sim


def run(sim: Simulation, first: int, last: int, workers: int = 2) -> None:
    for step in range(first, last):
        means = sim.step(gradients(step, workers))
        assert all(np.isfinite(mean).all() for mean in means.values())


def assert_same_autoencoder(sim: Simulation) -> None:
    first, second = (compressor.state_dict()["shared"] for compressor in sim.compressors)
    assert first["weights"]
    assert all(first[key] == second[key] for key in ("weights", "switch", "stays"))


def test_the_new_leader_trains_between_steps() -> None:
    """With all the steps that training takes: the old one's samples went with it."""
    sim = without_its_leader("inline", 20)
    run(sim, 20, 20 + TRAIN_STEPS)
    assert phase(sim) == "train"
    run(sim, 20 + TRAIN_STEPS, 20 + TRAIN_STEPS + 8)
    assert phase(sim) == "learned"
    leader, other = (compressor.stats()["lgc"]["trainer"] for compressor in sim.compressors)
    assert leader["samples"] == TRAIN_STEPS
    assert other is None
    assert_same_autoencoder(sim)


def test_nothing_is_trained_anew_if_all_have_the_weights() -> None:
    """The leader has told them, and the ranks are about to change over."""
    sim = without_its_leader("inline", TRAIN_STEPS + 3)
    run(sim, TRAIN_STEPS + 3, TRAIN_STEPS + 8)
    assert phase(sim) == "learned"
    assert not any((compressor.stats()["lgc"]["trainer"] or {}).get("samples") for compressor in sim.compressors)
    assert_same_autoencoder(sim)


def test_the_new_leader_s_process_trains() -> None:
    sim = without_its_leader("process", 20)
    step, until = 20, time.monotonic() + LIMIT
    while phase(sim) != "learned":
        assert time.monotonic() < until
        run(sim, step, step + 1)
        step += 1
        time.sleep(0.01)
    assert step > 20 + TRAIN_STEPS
    leader, other = (compressor.stats()["lgc"]["trainer"] for compressor in sim.compressors)
    assert leader["samples"] > 0
    assert other is None
    assert_same_autoencoder(sim)


def test_the_new_leader_s_process_dies_too(caplog: pytest.LogCaptureFixture) -> None:
    """Then all ranks stay with top-k."""
    sim = without_its_leader("process", 20)
    run(sim, 20, 22)
    training = sim.compressors[0].learning.supervisor.training
    os.kill(training.pid, signal.SIGKILL)  # type: ignore[union-attr]
    training._process.wait()  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        run(sim, 22, 30)
    assert phase(sim) == "topk"
    assert [message for message in caplog.messages if "stays with top-k: the process that trains" in message]
