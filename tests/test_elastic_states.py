"""What Horovod's loop over changes of the workers, ``hvd.elastic.run``, makes of a state that keeps a compressor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hvd_compress import Simulation, TopK
from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.drivers.leaving import Job
from hvd_compress.kernels import Float32
from tests.contract.test_changes import SHAPES, draw
from tests.meeting import begin_step

elastic = pytest.importorskip("horovod.common.elastic")
from horovod.common.exceptions import HorovodInternalError  # noqa: E402

from hvd_compress.drivers.elastic_states import extend_changes  # noqa: E402


class Twins:
    """A job of workers that all do the same as this one."""

    def __init__(self) -> None:
        self.size = 2
        self.until_death = 0
        """In so many collectives from here on a worker dies; 0: in none."""

    def gather(self, thing: Any) -> list[Any]:
        if self.until_death:
            self.until_death -= 1
            if not self.until_death:
                raise HorovodInternalError
        return [thing] * self.size

    def total(self, array: Float32) -> Float32:
        return np.sum(self.gather(array), axis=0, dtype=np.float32)

    def job(self) -> Job:
        return Job(lambda: 0, lambda: self.size, lambda thing: self.gather(thing)[0], self.gather, self.total)


def state_of(twins: Twins, *kept: CommittedState) -> Any:
    """Return a state like Horovod's for PyTorch, of a model (a number), plain data and compressors."""

    class State(elastic.ObjectState):  # type: ignore[misc]
        weights = saved_weights = 0

        def save(self) -> None:
            for one in kept:
                one.save()
            self.saved_weights = self.weights
            super().save()

        def restore(self) -> None:
            for one in kept:
                one.restore()
            self.weights = self.saved_weights
            super().restore()

        def sync(self) -> None:
            for one in kept:
                one.sync(twins.job())
            super().sync()

    extend_changes(State, lambda _: kept, twins.job())
    return State(bcast_object=lambda thing: twins.gather(thing)[0], get_rank=lambda: 0, step=0)


def residuals(sim: Simulation) -> list[Any]:
    return [sim.compressors[0].state_dict()["memory"][name]["residual"] for name in SHAPES]


@pytest.fixture
def begun() -> tuple[Simulation, CommittedState]:
    """Return a worker that has trained."""
    sim = Simulation(TopK(0.05, min_numel=1), 1)
    sim.step(draw(0, 1))
    return sim, CommittedState(sim.compressors[0])


def run(twins: Twins, state: Any, *, until_death: int = 0, before: Callable[[], Any] = lambda: None) -> list[int]:
    """Train until the other one's host goes in step 3, which is not committed; return the steps in which training
    began. ``before`` is called before hosts are looked for; ``until_death`` counts from when workers meet again."""
    begun_in: list[int] = []

    def train(state: Any) -> list[int]:
        begun_in.append(state.step)
        if len(begun_in) == 1:
            state.step = 3
            state.on_hosts_updated(1, elastic.HostUpdateResult.removed)
            before()
            state.check_host_updates()
        return begun_in

    def reset() -> None:
        if twins.size == 2:
            twins.size, twins.until_death = 1, until_death

    result: list[int] = elastic.run_fn(train, reset)(state)
    return result


def test_a_host_goes(begun: tuple[Simulation, CommittedState]) -> None:
    """Its worker's memory is taken over, and plain data stays what it is, committed or not."""
    sim, committed = begun
    twins = Twins()
    before = residuals(sim)
    assert run(twins, state_of(twins, committed)) == [0, 3]
    for now, then in zip(residuals(sim), before, strict=True):
        assert then.any()
        np.testing.assert_allclose(now, 2 * then, rtol=1e-6)


def test_no_compressor_is_kept() -> None:
    """Then all is as Horovod has it, whose ``sync`` is left out."""
    twins = Twins()
    assert run(twins, state_of(twins), until_death=1) == [0, 3]
    assert twins.until_death == 1


@pytest.mark.parametrize("until_death", [1, 2, 3, 4])
def test_a_worker_dies_while_they_meet_again(begun: tuple[Simulation, CommittedState], until_death: int) -> None:
    """The others go on from what was saved; what had not been taken over is lost."""
    sim, committed = begun
    twins = Twins()
    before = residuals(sim)
    assert run(twins, state_of(twins, committed), until_death=until_death) == [0, 3]
    assert not twins.until_death
    for now, then in zip(residuals(sim), before, strict=True):
        np.testing.assert_allclose(now, 2 * then if until_death == 4 else then, rtol=1e-6)


@pytest.mark.parametrize("until_death", [1, 2, 3])
def test_a_worker_dies_while_they_part(begun: tuple[Simulation, CommittedState], until_death: int) -> None:
    """In Horovod's broadcast, or in one of the two collectives here: all go back to the last commit."""
    sim, committed = begun
    twins = Twins()
    before = residuals(sim)

    def dies() -> None:
        twins.until_death = until_death

    assert run(twins, state_of(twins, committed), before=dies) == [0, 0]
    for now, then in zip(residuals(sim), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("what", [elastic.HostUpdateResult.added, elastic.HostUpdateResult.removed])
def test_a_step_fails_between_a_change_and_the_next_commit(begun: tuple[Simulation, CommittedState], what: int) -> None:
    """Weights, memories and plain data go back to the change together."""
    sim, committed = begun
    twins = Twins()
    state = state_of(twins, committed)
    seen: list[Any] = []

    def train(state: Any) -> None:
        seen.append((state.weights, state.step, [array.tobytes() for array in residuals(sim)]))
        if len(seen) == 3:
            return
        sim.step(draw(len(seen), 1))
        state.weights += 1
        state.step += 1
        if len(seen) == 2:
            raise HorovodInternalError
        state.on_hosts_updated(1, what)
        state.check_host_updates()

    elastic.run_fn(train, lambda: sim.change([0], 1))(state)
    assert seen[0] != seen[1] == seen[2]
    assert seen[1][:2] == (1, 1)


def test_hosts_are_looked_for_in_the_middle_of_a_step(begun: tuple[Simulation, CommittedState]) -> None:
    """There is nothing to be saved then; plain data goes back to the last commit, as where hosts come."""
    sim, committed = begun
    twins = Twins()
    before = residuals(sim)
    under_way: list[Any] = []

    def begin() -> None:
        under_way.extend(begin_step(sim, [0], draw(1, 1)))

    def end() -> None:
        sim.change([0], 1)  # which drops the step
        under_way.clear()

    state = state_of(twins, committed)
    state.register_reset_callbacks([end])
    assert run(twins, state, before=begin) == [0, 0]
    for now, then in zip(residuals(sim), before, strict=True):
        np.testing.assert_array_equal(now, then)
