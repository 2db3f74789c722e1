"""What workers hold back that leave an elastic job in an orderly way, and such that do not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, QSGDMaxNorm, Simulation, TopK
from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.drivers.leaving import Job
from hvd_compress.kernels import Float32
from tests.contract.test_changes import SHAPES, draw, everything
from tests.meeting import begin_step, meet
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
    """Go on with others, as Horovod does."""
    assert all(meet([state.part for state in states]))
    return meet_again(sim, states, stay, workers)


def meet_again(sim: Simulation, states: list[CommittedState], stay: list[int], workers: int) -> list[CommittedState]:
    sim.change(stay, workers)
    states = [states[rank] for rank in stay] + [CommittedState(one) for one in sim.compressors[len(stay) :]]
    meet([state.sync for state in states])
    for state in states[len(stay) :]:  # the others may have to go back before all is in step
        state.save()
    sim.change(list(range(workers)), workers)  # a restored simulation agrees anew
    return states


def fail_to_part(state: CommittedState) -> Callable[[Job], None]:
    """Return what a worker does whose all-reduce fails when the others' has not."""

    def part(job: Job) -> None:
        def total(array: Float32) -> Float32:
            job.total(array)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            state.part(replace(job, total=total))
        state.restore()

    return part


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


def test_it_is_handed_over_once() -> None:
    sim, states = begun(3)
    states = change(sim, states, [0, 1], 2)
    sim.step(draw(7, 2))
    kept = [everything(one) for one in sim.compressors]
    meet([state.sync for state in states])
    assert [everything(one) for one in sim.compressors] == kept


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
    sim.change([0, 1], 2)  # a restored simulation agrees anew
    sim.step(draw(7, 2))
    assert caplog.records == [said]  # the engines have nothing to add


def test_the_first_that_was_there_before_tells_who_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that is new may be rank 0."""
    sim, states = begun(3)
    new = Simulation(TopK(0.05, **LIKE), 1)
    with caplog.at_level(logging.WARNING):
        meet([CommittedState(new.compressors[0]).sync, states[1].sync, states[2].sync])
    (said,) = caplog.records
    assert said.getMessage().startswith("1 of 3 workers are gone, and what they held back is lost")
    assert sim.compressors[1].runtime.trained_among == 3


def test_a_step_that_fails_after_they_have_parted() -> None:
    """What was added up then is not what there is after the restore."""
    sim, states = begun(3)
    sim.step(draw(5, 3))
    meet([state.part for state in states])
    for state in states:
        state.restore()
    kept = saved(sim)
    meet_again(sim, states, [0, 1], 2)
    for name in SHAPES:
        np.testing.assert_array_equal(total(saved(sim), name, "residual"), total(kept[:2], name, "residual"))


@pytest.mark.parametrize(("fails", "stay"), [(0, [0, 2]), (2, [0, 2]), (2, [2, 0]), (1, [1])])
@pytest.mark.parametrize("new", [False, True])
def test_one_that_stays_could_not_part(
    fails: int, stay: list[int], new: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It has what it holds and is not taken for one that has left, not even if its state has been made anew: nobody can
    tell what those held that have left, which is said, and the others do not keep the parting."""
    sim, states = begun(3)
    if new:
        states[fails] = CommittedState(sim.compressors[fails])
    before = saved(sim)
    meet([fail_to_part(state) if rank == fails else state.part for rank, state in enumerate(states)])
    with caplog.at_level(logging.WARNING):
        states = meet_again(sim, states, stay, len(stay))
    (said,) = caplog.records
    assert said.getMessage().startswith(f"{3 - len(stay)} of 3 workers are gone, and what they held back is lost")
    for name in SHAPES:
        for now, rank in zip(saved(sim), stay, strict=True):
            np.testing.assert_array_equal(now["memory"][name]["residual"], before[rank]["memory"][name]["residual"])
    caplog.clear()
    meet([state.sync for state in states])
    assert not caplog.records


def test_one_that_leaves_could_not_part() -> None:
    """What it held has been added up all the same."""
    sim, states = begun(3)
    before = saved(sim)
    meet([states[0].part, states[1].part, fail_to_part(states[2])])
    meet_again(sim, states, [0, 1], 2)
    for name in SHAPES:
        sums = total(before, name, "residual"), total(saved(sim), name, "residual")
        np.testing.assert_allclose(*sums, rtol=0, atol=1e-6 * np.abs(sums[0]).max())


@pytest.mark.parametrize("busy", [[0, 1, 2], [1]])
def test_they_are_asked_in_the_middle_of_a_step(busy: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Each says that it may be lost, what those that have left held is lost, and that is said, too."""
    sim, states = begun(3)
    before = saved(sim)
    under_way = begin_step(sim, busy, draw(5, 3))
    with caplog.at_level(logging.WARNING):
        assert meet([state.part for state in states]) == [rank not in busy for rank in range(3)]
        said = [record.getMessage() for record in caplog.records]
        assert sum("in the middle of a step" in message for message in said) == len(busy)
        assert sum("what it holds (norm" in message for message in said) == 3 - len(busy)
        assert len(said) == 3
        caplog.clear()
        del under_way
        meet_again(sim, states, [0, 2], 2)
    (last,) = caplog.records
    assert last.getMessage().startswith("1 of 3 workers are gone, and what they held back is lost")
    for name in SHAPES:
        for now, rank in zip(saved(sim), [0, 2], strict=True):
            np.testing.assert_array_equal(now["memory"][name]["residual"], before[rank]["memory"][name]["residual"])


def test_nothing_is_held_back_in_the_middle_of_a_step(caplog: pytest.LogCaptureFixture) -> None:
    sim, states = begun(2, compressor=QSGDMaxNorm(**LIKE))
    under_way = begin_step(sim, range(2), draw(5, 2))
    assert meet([state.part for state in states]) == [False, False]
    assert under_way
    assert not caplog.records


def test_workers_that_do_not_hold_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Each says what would be lost."""
    sim, states = begun(2)
    other = TopK(0.05, **LIKE)
    with caplog.at_level(logging.WARNING):
        meet([states[0].part, CommittedState(other).part])
    (said,) = caplog.records
    assert "what it holds (norm" in said.getMessage()
    sim.change([0], 1)
    kept = everything(sim.compressors[0])
    meet([states[0].sync])
    assert everything(sim.compressors[0]) == kept
