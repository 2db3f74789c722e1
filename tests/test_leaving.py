"""What workers hold back that leave an elastic job in an orderly way, and such that do not."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, QSGDMaxNorm, Simulation, TopK
from hvd_compress.drivers.elastic import CommittedState
from tests.contract.test_changes import SHAPES, draw, everything
from tests.meeting import meet
from tests.test_elastic import total

LIKE = {"min_numel": 1}


def begun(workers: int, steps: int = 2, compressor: Any = None) -> tuple[Simulation, list[CommittedState]]:
    """Return a job that has come so far, and committed."""
    sim = Simulation(compressor or TopK(0.05, **LIKE), workers)
    states = [CommittedState(one) for one in sim.compressors]
    meet([state.sync for state in states])
    for step in range(steps):
        sim.step(draw(step, workers))
    for state in states:
        state.save()
    return sim, states


def saved(sim: Simulation) -> list[dict[str, Any]]:
    return [one.state_dict() for one in sim.compressors]


def change(sim: Simulation, states: list[CommittedState], stay: list[int], workers: int) -> list[CommittedState]:
    """Go on with others, as Horovod does: where none has joined, it does not call ``sync``."""
    meet([state.part for state in states])
    sim.change(stay, workers)
    new = [CommittedState(one) for one in sim.compressors[len(stay) :]]
    states = [states[rank] for rank in stay] + new
    meet([state.sync if new else state.meet for state in states])
    sim.change(list(range(workers)), workers)  # a restored simulation agrees anew
    return states


@pytest.mark.parametrize("compressor", [TopK(0.05, **LIKE), DGC(0.05, **LIKE)], ids=lambda it: it.name)
@pytest.mark.parametrize(("stay", "workers"), [([0, 2], 2), ([1, 2], 2), ([1], 1), ([2, 0], 4), ([0, 1], 3)])
def test_what_they_hold_back_is_handed_over(compressor: Any, stay: list[int], workers: int) -> None:
    """To the first of those that stay; the others keep theirs bit for bit; and so it is after a restore."""
    sim, states = begun(3, compressor=compressor)
    before = saved(sim)
    kept = [everything(sim.compressors[rank]) for rank in stay]
    states = change(sim, states, stay, workers)
    for name in SHAPES:
        for key in before[0]["memory"][name]:
            sums = total(before, name, key), total(saved(sim), name, key)
            np.testing.assert_allclose(*sums, rtol=0, atol=1e-6 * np.abs(sums[0]).max())
    assert [everything(one) for one in sim.compressors[1 : len(stay)]] == kept[1:]
    assert everything(sim.compressors[0]) != kept[0]
    sim.step(draw(7, workers))
    for state in states:
        state.restore()
    for name in SHAPES:
        for key in before[0]["memory"][name]:
            sums = total(before, name, key), total(saved(sim), name, key)
            np.testing.assert_allclose(*sums, rtol=0, atol=1e-6 * np.abs(sums[0]).max())


def test_nobody_leaves() -> None:
    sim, states = begun(2)
    kept = [everything(one) for one in sim.compressors]
    change(sim, states, [1, 0], 3)
    assert [everything(one) for one in sim.compressors[1::-1]] == kept


def test_there_is_nothing_to_hand_over(caplog: pytest.LogCaptureFixture) -> None:
    """Without a memory, and before the first step."""
    for steps, compressor in ((2, QSGDMaxNorm(**LIKE)), (0, TopK(0.05, **LIKE))):
        sim, states = begun(2, steps, compressor)
        change(sim, states, [1], 1)
        assert sim.step(draw(5, 1)).keys() == SHAPES.keys()
    assert not caplog.records


def test_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sim, states = begun(3)
    lost = sim.compressors[1].state_dict()["memory"].values()
    norm = np.sqrt(sum(float(np.square(array).sum()) for arrays in lost for array in arrays.values()))
    with caplog.at_level(logging.WARNING):
        change(sim, states, [0, 2], 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 3 workers have left; what they held back (norm {norm:.3g}) is held back here from now on"
    ]


def test_workers_that_are_gone_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, and what the first of the others holds says how much it was."""
    sim, states = begun(3)
    for state in states:
        state.restore()
    sim.change([0, 2], 2)
    kept = [everything(one) for one in sim.compressors]
    with caplog.at_level(logging.WARNING):
        meet([states[0].sync, states[2].sync])
    (said,) = caplog.records
    assert said.getMessage().startswith("1 of 3 workers are gone, and what they held back is lost")
    assert [everything(one) for one in sim.compressors] == kept


def test_a_step_that_fails_after_they_have_parted() -> None:
    """What was added up then is not what there is after the restore."""
    sim, states = begun(3)
    sim.step(draw(5, 3))
    meet([state.part for state in states])
    for state in states:
        state.restore()
    sim.change([0, 1], 2)
    kept = [everything(one) for one in sim.compressors]
    meet([state.sync for state in states[:2]])
    assert [everything(one) for one in sim.compressors] == kept


def test_workers_that_do_not_hold_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """One that was asked in the middle of a step, say: each says what would be lost."""
    sim, states = begun(2)
    busy = TopK(0.05, **LIKE)
    with caplog.at_level(logging.WARNING):
        meet([states[0].part, CommittedState(busy).part])
    (said,) = caplog.records
    assert "what it holds (norm" in said.getMessage()
    sim.change([0], 1)
    kept = everything(sim.compressors[0])
    meet([states[0].meet])
    assert everything(sim.compressors[0]) == kept
