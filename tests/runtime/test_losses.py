"""Workers that are gone, and what they held back with them: it is said, once, by one that was there before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, QSGDMaxNorm, TopK
from hvd_compress.runtime.agreement import check_proposals, proposal
from hvd_compress.runtime.losses import Loss, loss_of
from tests.contract.test_changes import draw
from tests.simulation import GraphSimulation, Simulation

TOP_K = TopK(0.05, min_numel=1)


@pytest.mark.parametrize(
    ("trained_among", "loss"),
    [
        ([0, 0], None),
        ([2, 2], None),
        ([2, 2, 0], None),
        ([3], Loss(2, 3, 0)),
        ([3, 3, 0], Loss(1, 3, 0)),
        ([0, 3, 0, 3], Loss(1, 3, 1)),
    ],
)
def test_who_is_gone(trained_among: list[int], loss: Loss | None) -> None:
    assert loss_of(trained_among) == loss
    rows = [proposal(TOP_K, [], 0, [], ([], 0, ""), "", trained_among=workers) for workers in trained_among]
    assert check_proposals(np.concatenate(rows)).loss == loss


@pytest.mark.parametrize("simulation", [Simulation, GraphSimulation])
@pytest.mark.parametrize("compressor", [TOP_K, DGC(0.05, min_numel=1)], ids=lambda it: it.name)
@pytest.mark.parametrize(("stay", "workers"), [([0], 1), ([2, 1], 2), ([1, 2], 3), ([1], 4)])
def test_it_is_said(
    simulation: Any, compressor: Any, stay: list[int], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where as many have come as have gone; with the norm of what the one that tells of it holds."""
    sim = simulation(compressor, 3)
    for step in range(2):
        sim.step(draw(step, 3))
    held = sim.compressors[stay[0]].state_dict()["memory"].values()
    norm = np.sqrt(sum(np.square(a, dtype=np.float64).sum() for it in held for k, a in it.items() if "mean" not in k))
    sim.change(stay, workers)
    assert not caplog.records
    for step in range(2, 4):
        sim.step(draw(step, workers))
    (said,) = caplog.records
    gone = f"{3 - len(stay)} of 3 workers are gone, and what they held back is lost"
    assert said.getMessage() == f"{gone}; what this one holds back has norm {norm:.3g}"
    caplog.clear()
    sim.change(list(range(workers)), workers + 1)
    sim.step(draw(4, workers + 1))
    assert not caplog.records
    sim.change([workers], 1)  # one that had joined
    sim.step(draw(5, 1))
    (said,) = caplog.records
    assert said.getMessage().startswith(f"{workers} of {workers + 1} workers are gone")


def test_a_worker_that_came_and_went_before_a_step_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Neither among those that are gone, nor among those that are there."""
    for stay, gone in (([0, 1], 0), ([0, 2], 1)):
        sim = Simulation(TOP_K, 2)
        sim.step(draw(0, 2))
        sim.change([0, 1], 3)
        sim.change(stay, 2)
        sim.step(draw(1, 2))
        assert len(caplog.records) == gone
    assert caplog.records[0].getMessage().startswith("1 of 2 workers are gone")


def test_nothing_is_held_back(caplog: pytest.LogCaptureFixture) -> None:
    sim = Simulation(QSGDMaxNorm(min_numel=1), 3)
    sim.step(draw(0, 3))
    sim.change([0], 1)
    sim.step(draw(1, 1))
    assert not caplog.records
