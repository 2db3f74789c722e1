"""Which candidate a step runs: trials in rounds, a choice, and when to try again.

All of it follows from the numbers of the steps and from what the workers have told each other. No clock is read here,
so that all ranks go through the same steps, whatever their clocks say.

Steps are cut into *segments*, in each of which one thing is done. In the last step of a segment the workers report: how
long its steps took, and whether anything is held back. That decides the next segment. A step with everything sent as it
is, called a flush, comes before a candidate that keeps no memory if one may hold something back; it is repeated until
nobody does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

from hvd_compress.auto.rule import choose

FLUSH, TRIAL, USE = "flush", "trial", "use"

FIRST_ROUND, LATER_ROUND = 3, 6
"""Steps of every candidate that are timed in a round of a trial."""
FAR = 1.5
"""The second round is for those whose median is at most so many times the fastest."""
ERRORS = 2.0
"""Any later one is for those that are slower than the fastest by at most so many standard errors of the difference."""
BUDGET = 100
"""Steps that a trial has at most, unless its first round takes more: 5 % of 2,000."""
KEPT = 64
"""Step times of every candidate, the latest ones, that the next trial adds to if nothing has changed."""
WARM_UP = 3
"""Steps before anything is timed: allocations, files and caches make the first ones slow."""
SETTLING = 1
"""Steps of a candidate before its steps are timed."""
CHECK_EVERY = 50
"""Steps from one report to the next while a choice is in use."""
MARGIN = 0.01
"""What a candidate must be faster by than a milder one to be chosen."""
CHANGE = 0.1
"""A step time has changed if it differs by more than this fraction, and by more than ``VARIATIONS`` times its
variation, in two reports one after the other."""
VARIATIONS = 3.0
COST_AFTER_CHANGE, COST = 0.05, 0.01
"""A trial may cost this fraction of the time since the last one: after a change, and without."""
FIRST_PATIENCE = 100
"""Steps after a trial until a change leads to another; doubled with each that does, until ``look_again`` steps pass
without one."""


class Segment(NamedTuple):
    """Steps in which one thing is done; the last one reports."""

    kind: str
    """``FLUSH``, ``TRIAL`` or ``USE``."""
    candidate: int
    first: int
    steps: int
    settling: int

    @property
    def last(self) -> int:
        return self.first + self.steps - 1

    def times(self, step: int) -> bool:
        """Return whether the time of this step counts."""
        return self.first + self.settling <= step < self.last


@dataclass
class Trials:
    """The state of the choice. See the module's docstring.

    Args:
        remembers: of every candidate, from the mildest to the strongest, whether it holds back what it does not send.
        look_again: steps from one trial to the next, if nothing changes.
    """

    remembers: list[bool]
    look_again: int
    chosen: int | None = None
    """The candidate in use; None before the first trial is over."""
    spent: int = 0
    """Steps of the trial that is under way, or of the last."""
    looks: int = 0
    """Trials begun."""
    cause: str = "training begins"
    """Why the last trial began."""
    samples: list[list[float]] = field(default_factory=list)
    """The step times of every candidate in the trial that is under way, or in the last: seconds, of the slowest worker
    in each step."""
    earlier: list[list[float]] = field(default_factory=list)
    """Those of the trials before, as long as nothing has changed since."""
    previous: Segment | None = None
    current: Segment | None = None
    goal: Segment | None = None
    """What follows when nothing is held back; its first step is not known yet."""
    dirty: bool = True
    """Whether a worker may hold something back."""
    round: int = 0
    running: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    """Median and variation of the step time in use."""
    odd: int = 0
    """Reports one after the other in which the step time was not what it should be."""
    used: int = 0
    """Steps since the last trial, and their time."""
    elapsed: float = 0.0
    patience: int = FIRST_PATIENCE

    def at(self, step: int) -> Segment:
        """Return the segment of a step: of the one that is under way, or one before or after it."""
        if self.current is None:
            self._look(self.cause)
            self._begin(Segment(FLUSH, -1, step, 1, 0))
        assert self.current is not None
        current, previous = self.current, self.previous
        return previous if previous is not None and step < current.first else current

    def report(self, step: int, holds: bool, times: Sequence[float]) -> bool:
        """Take what all workers reported in the last step of a segment; return whether a trial has come to its end.

        ``holds`` tells whether some worker held something back before this step, ``times`` has the step times that were
        asked for; both are the same on every rank.
        """
        assert self.current is not None
        assert step >= self.current.last, f"a report of step {step} in {self.current}"
        segment = self.current = self.current._replace(steps=step - self.current.first + 1)
        if segment.kind == FLUSH:
            self.dirty = holds
        elif self.remembers[segment.candidate]:
            self.dirty = True
        if segment.kind == USE:
            self._check(segment, times)
            return False
        self.spent += segment.steps
        if segment.kind == TRIAL:
            if times:
                self.samples[segment.candidate] += times
            else:
                self.queue.insert(0, segment.candidate)
            if not self.queue and self._choose_or_go_on():
                return True
            self._next_trial()
        else:
            assert self.goal is not None
            self._go(self.goal)
        return False

    @property
    def medians(self) -> list[float]:
        """The median step time of every candidate; infinite for those that were not timed."""
        return [median(times) if times else float("inf") for times in self.samples]

    def variation(self, candidate: int) -> float:
        """Return by how much the step times of a candidate vary: their scaled median absolute deviation."""
        return _variation(self.samples[candidate])

    def state(self) -> dict[str, Any]:
        """Return all of it, as plain data."""
        segments = {key: _plain(getattr(self, key)) for key in ("previous", "current", "goal")}
        return {**asdict(self), **segments}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Trials:
        """Return what ``state`` was taken of."""
        segments = {key: Segment(*state[key]) if state[key] else None for key in ("previous", "current", "goal")}
        return cls(**{**state, **segments})

    def _look(self, cause: str, *, changed: bool = True) -> None:
        """Begin a trial; what earlier ones found counts in it unless step times have ``changed``."""
        self.looks += 1
        self.cause = cause
        self.spent = self.round = self.used = self.odd = 0
        self.elapsed = 0.0
        self.earlier = [[] if changed else times[-KEPT:] for times in self.samples]
        self.samples = [[] for _ in self.remembers]
        self.running = list(range(len(self.remembers)))
        self._queue()
        self._next_trial()

    def _queue(self) -> None:
        """Candidates without memory come first, so that few flushes are needed."""
        self.queue = sorted(self.running, key=lambda candidate: self.remembers[candidate])

    def _next_trial(self) -> None:
        if len(self.remembers) == 1:
            self._use(0)
            return
        settling = SETTLING + (WARM_UP if self.looks == 1 and not any(self.samples) else 0)
        candidate = self.queue.pop(0)
        self._go(Segment(TRIAL, candidate, 0, settling + self._timed() + 1, settling))

    def _choose_or_go_on(self) -> bool:
        """After a round: choose, and return True, or let the next round begin."""
        if self.round == 0:
            self._recall()
        self.running = self._contenders()
        self._queue()
        if len(self.running) > 1 and self.spent + self._steps(self.running, LATER_ROUND) <= BUDGET:
            self.round += 1
            return False
        self.chosen = choose(self.medians, MARGIN)
        self.queue = []
        self.reference = []
        self._use(self.chosen)
        return True

    def _recall(self) -> None:
        """Add what earlier trials found, unless some candidate takes another time now than it did then."""
        pairs = list(zip(self.samples, self.earlier, strict=False))
        if pairs and all(old and not _differs(median(new), median(old), _variation(old)) for new, old in pairs):
            self.samples = [old + new for new, old in pairs]

    def _contenders(self) -> list[int]:
        """Return which of those that are running may be the fastest, by what is known so far."""
        times = self.medians
        fastest = min(self.running, key=lambda candidate: times[candidate])
        counts = [len(self.samples[candidate]) for candidate in self.running]
        if min(counts) <= FIRST_ROUND:
            return [candidate for candidate in self.running if times[candidate] <= FAR * times[fastest]]
        # All are timed on the same machines: by how much steps vary is better known from all together.
        error = 1.25 * median(self.variation(candidate) for candidate in self.running)

        def sure(candidate: int) -> float:
            counts = [len(self.samples[one]) for one in (candidate, fastest)]
            return times[fastest] + ERRORS * error * math.sqrt(sum(1 / count for count in counts))

        return [candidate for candidate in self.running if times[candidate] <= sure(candidate)]

    def _timed(self) -> int:
        """Return how many steps of a candidate are timed in this round."""
        return LATER_ROUND if self.round else FIRST_ROUND

    def _use(self, candidate: int) -> None:
        self.chosen = candidate
        self._go(Segment(USE, candidate, 0, CHECK_EVERY, SETTLING))

    def _check(self, segment: Segment, times: Sequence[float]) -> None:
        """Look at the step times of the choice in use: whether they are as they were."""
        self.used += segment.steps
        if times and len(self.remembers) > 1:
            now, others = median(times), [*self.medians]
            others.pop(segment.candidate)
            self.elapsed += now * segment.steps
            self.reference = self.reference or [now, _variation(times)]
            usual, variation = self.reference
            differs = _differs(now, usual, variation)
            self.odd = self.odd + 1 if differs or now * (1 - CHANGE) > min(others) else 0
            cost = self._cost(now)
            if self.odd >= 2 and self.used >= self.patience and cost <= COST_AFTER_CHANGE * self.elapsed:
                self.patience = min(2 * self.patience, self.look_again)
                self._look(f"a step took {1000 * now:.4g} ms, not {1000 * min(usual, *others):.4g}")
                return
            if self.used >= self.look_again and cost <= COST * self.elapsed:
                self.patience = FIRST_PATIENCE
                self._look(f"{self.used} steps have passed", changed=False)
                return
        self._use(segment.candidate)

    def _cost(self, now: float) -> float:
        """Return the seconds that a trial's first round would cost beyond as many steps at ``now`` seconds each."""
        times, steps = self.medians, SETTLING + FIRST_ROUND + 1
        flushes = 2 if any(self.remembers) else 0
        flush = max(times)  # uncompressed may not be among them
        return sum(steps * max(0.0, time - now) for time in times) + flushes * max(0.0, flush - now)

    def _steps(self, candidates: Sequence[int], timed: int) -> int:
        """Return how many steps a round of these candidates takes, with the flushes before and after, if so many of
        each are timed."""
        remembering = sum(self.remembers[candidate] for candidate in candidates)
        flushes = 2 * ((self.dirty and remembering < len(candidates)) + (remembering > 0))
        return len(candidates) * (SETTLING + timed + 1) + flushes

    def _go(self, segment: Segment) -> None:
        """Let a segment follow: at once, or when nothing is held back that its candidate would not remember."""
        self.goal = segment
        if self.dirty and not self.remembers[segment.candidate]:
            segment = Segment(FLUSH, -1, 0, 1, 0)
        if self.current is not None:
            self._begin(segment)

    def _begin(self, segment: Segment) -> None:
        self.previous, current = self.current, self.current
        first = segment.first if current is None else current.last + 1
        self.current = segment._replace(first=first)


def _differs(now: float, usual: float, variation: float) -> bool:
    """Whether a step time has changed."""
    return abs(now - usual) > max(VARIATIONS * variation, CHANGE * usual)


def _variation(times: Sequence[float]) -> float:
    middle = median(times)
    return 1.4826 * median(abs(time - middle) for time in times)


def _plain(segment: Segment | None) -> list[Any] | None:
    return None if segment is None else list(segment)
