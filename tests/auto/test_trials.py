"""The choice as a machine: what it does with given step times. Candidates 0 to 2 have no memory, 3 has one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from hvd_compress.auto import trials as module
from hvd_compress.auto.rule import choose
from hvd_compress.auto.trials import BUDGET, CHECK_EVERY, FLUSH, TRIAL, USE, Segment, Trials

REMEMBERS = [False, False, False, True]
Times = Callable[[int, int], float]


class Run:
    """Steps of one training. ``times(candidate, step)`` are seconds; a flush takes as long as candidate 0."""

    def __init__(self, times: Times, remembers: list[bool] = REMEMBERS, look_again: int = 1000) -> None:
        self.trials = Trials(list(remembers), look_again)
        self.done: list[Segment] = []
        self.seconds = 0.0
        self.holds = False
        self._times = times
        self._taken: list[float] = []

    def step(self) -> None:
        step = len(self.done)
        segment = self.trials.at(step)
        held = self.holds
        self.holds = segment.kind != FLUSH and (held or self.trials.remembers[segment.candidate])
        if segment.kind != FLUSH and not self.trials.remembers[segment.candidate]:
            assert not held, "a candidate without memory while something is held back"
        if step == segment.last:
            self.trials.report(step, held, self._taken[-8:])
            self._taken = []
        took = self._times(max(segment.candidate, 0), step)
        self.seconds += took
        if segment.times(step):
            self._taken.append(took)
        self.done.append(segment)

    def steps(self, count: int) -> Run:
        for _ in range(count):
            self.step()
        return self

    def kinds(self, begin: int = 0) -> Counter[str]:
        return Counter(segment.kind for segment in self.done[begin:])


def fixed(*seconds: float) -> Times:
    return lambda candidate, _: seconds[candidate]


@pytest.mark.parametrize("remembers", [REMEMBERS, [False] * 4, [True] * 4, [False] * 7 + [True] * 3], ids=str)
def test_a_trial_takes_five_percent_of_2000_steps_at_most(remembers: list[bool]) -> None:
    """All alike: as many rounds as there may be."""
    run = Run(fixed(*[0.1] * len(remembers)), remembers).steps(150)
    kinds = run.kinds()
    assert kinds[TRIAL] + kinds[FLUSH] <= BUDGET == 0.05 * 2000
    assert run.trials.chosen == 0


@pytest.mark.parametrize("fastest", range(4))
def test_the_fastest_stays(fastest: int) -> None:
    times = [0.2, 0.21, 0.25, 0.22]
    times[fastest] = 0.1
    run = Run(fixed(*times)).steps(400)
    assert run.trials.chosen == fastest
    assert all((s.kind, s.candidate) == (USE, fastest) for s in run.done[BUDGET:])


def test_what_is_far_too_slow_is_tried_in_the_first_round_only() -> None:
    run = Run(fixed(30.0, 1.0, 1.1, 1.12)).steps(150)
    tried = Counter(segment.candidate for segment in run.done if segment.kind == TRIAL)
    assert tried[0] == 5 + module.WARM_UP
    assert tried[1] > 2 * 5
    assert run.trials.chosen == 1


def test_a_trial_is_short_where_step_times_are_steady() -> None:
    """Two rounds tell that one of them is a twentieth faster than the others."""
    run = Run(lambda candidate, step: (0.1, 0.1, 0.095, 0.1)[candidate] * (1 + 0.002 * (step * 7919 % 13))).steps(150)
    assert run.trials.chosen == 2
    assert run.trials.spent <= 65


def test_a_trial_takes_all_its_steps_where_two_are_hard_to_tell_apart() -> None:
    """Steps vary by a quarter. The others are out after the first round; these two share what is left."""
    run = Run(lambda candidate, step: (0.3, 0.2, 0.1, 0.101)[candidate] * (1 + 0.02 * (step * 7919 % 13))).steps(150)
    counts = [len(times) for times in run.trials.samples]
    assert counts[:2] == [3, 3]
    assert min(counts[2:]) >= 3 + 3 * 6
    assert run.trials.spent > BUDGET - 20


def test_the_next_trial_adds_to_what_is_known() -> None:
    run = Run(fixed(0.1, 0.1001, 0.105, 0.11), look_again=200).steps(150)
    first = [len(times) for times in run.trials.samples]
    while run.trials.looks < 3 or run.trials.at(len(run.done)).kind != USE:
        run.step()
    assert all(more >= before + 3 for more, before in zip(map(len, run.trials.samples), first, strict=True))
    assert max(map(len, run.trials.samples)) <= module.KEPT + BUDGET


def test_what_another_network_has_told_does_not_count() -> None:
    """The choice takes as long as before, but another candidate has become the fastest meanwhile."""
    run = Run(lambda candidate, step: 0.05 if candidate == 2 and step >= 300 else (0.1, 0.101, 0.11, 0.12)[candidate])
    assert run.steps(900).trials.chosen == 0
    run.steps(600)
    assert run.trials.looks == 2
    assert run.trials.chosen == 2
    assert run.trials.medians == [0.1, 0.101, 0.05, 0.12]


def test_the_milder_of_two_that_are_alike() -> None:
    assert Run(fixed(0.1, 0.1001, 0.0995, 0.0992)).steps(150).trials.chosen == 0
    assert choose([1.0, 1.0, 0.5], margin=0.01) == 2
    assert choose([1.0], margin=0.01) == 0


def test_one_candidate_is_used_from_the_first_flush_on() -> None:
    run = Run(fixed(0.1), [True]).steps(2000)
    assert run.kinds() == {FLUSH: 1, USE: 1999}


def test_nothing_is_tried_again_without_a_reason() -> None:
    run = Run(fixed(0.1, 0.11, 0.15, 0.3), look_again=10_000).steps(5000)
    assert run.trials.looks == 1


def test_every_so_many_steps_it_is_tried_again() -> None:
    run = Run(fixed(0.1, 0.101, 0.102, 0.103), look_again=1000).steps(3500)
    assert run.trials.looks == 4
    assert run.trials.cause == "1000 steps have passed"


def test_trials_cost_one_percent_at_most() -> None:
    """Uncompressed takes ten times as long: it is tried again when many steps have passed."""
    times = fixed(1.0, 1.0, 0.2, 0.1)
    run = Run(times, look_again=100).steps(BUDGET)
    before = run.seconds
    run.steps(20_000)
    assert run.trials.looks == 2
    assert run.seconds - before <= 1.02 * 20_000 * 0.1


def test_a_change_leads_to_another_trial() -> None:
    """A network that becomes slow: uncompressed takes thrice as long from step 300 on."""
    run = Run(lambda candidate, step: 0.3 if candidate < 2 and step >= 300 else (0.1, 0.11, 0.15, 0.16)[candidate])
    run.steps(300)
    assert run.trials.chosen == 0
    run.steps(3 * CHECK_EVERY + BUDGET)
    assert run.trials.chosen == 2
    assert run.trials.cause == "a step took 300 ms, not 100"


def test_one_odd_report_is_no_change() -> None:
    """An evaluation, say."""
    run = Run(lambda candidate, step: (0.1, 0.12, 0.15, 0.16)[candidate] * (5 if 300 <= step < 340 else 1))
    assert run.steps(1000).trials.looks == 1


def test_what_varies_anyway_is_no_change() -> None:
    run = Run(lambda candidate, step: (0.1, 0.3, 0.3, 0.3)[candidate] * (1 + 0.5 * (step * 7919 % 13) / 13))
    assert run.steps(3000).trials.looks <= 1 + 3000 // 1000


def test_trials_that_change_nothing_become_rarer() -> None:
    """Step times that double and halve for all candidates alike, again and again."""
    run = Run(lambda candidate, step: (0.1, 0.101, 0.102, 0.103)[candidate] * (1 + step // 150 % 2), look_again=10**6)
    run.steps(20_000)
    assert 2 <= run.trials.looks <= 10


def test_flushes_are_repeated_until_nobody_holds_anything_back() -> None:
    trials = Trials([False, True], 1000)
    for step in range(7):
        assert trials.at(step).kind == FLUSH
        trials.report(step, step < 6, [])
    assert trials.at(7) == Segment(TRIAL, 0, 7, 8, 4)


def test_times_that_were_not_seen_are_asked_for_again() -> None:
    trials = Trials([False, False], 1000)
    trials.at(0)
    trials.report(0, False, [])
    first = trials.at(1)
    trials.report(first.last, False, [])
    again = trials.at(first.last + 1)
    assert (again.kind, again.candidate) == (TRIAL, 0)


def test_a_report_that_came_late() -> None:
    """A step of which some worker heard nothing: the next one reports."""
    trials = Trials([False, False], 1000)
    trials.at(0)
    trials.report(2, False, [])
    assert trials.at(3).first == 3
    assert trials.at(2).kind == FLUSH


def test_segments_of_the_same_step_are_the_same_before_and_after_its_report() -> None:
    trials = Trials([False, False], 1000)
    before = trials.at(0)
    trials.report(0, False, [])
    assert trials.at(0) == before
    assert trials.at(1) != before


@pytest.mark.parametrize("interrupted", [0, 1, 9, 40, 130, 1200])
def test_a_saved_choice_goes_on_as_if_nothing_had_happened(interrupted: int) -> None:
    times = fixed(0.12, 0.11, 0.115, 0.11)
    one, other = Run(times).steps(interrupted), Run(times).steps(interrupted)
    one.trials = Trials.from_state(json.loads(json.dumps(one.trials.state())))
    assert one.steps(300).done == other.steps(300).done
