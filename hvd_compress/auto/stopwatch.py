"""How long this worker's steps take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from time import perf_counter

REPORTED = 8
"""Numbers in which the step times of a segment are reported."""


class Stopwatch:
    """Keeps the durations of steps, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = perf_counter
        self.times: list[float] = []
        """Seconds, of the steps that count."""
        self._last: tuple[int, float] | None = None

    def done(self, step: int, count: int, *, counts: bool) -> None:
        """Take note that a step is done, the last of ``count``. Their mean time is kept if it ``counts`` and the step
        before them was seen, too."""
        now = self.clock()
        if counts and self._last is not None and self._last[0] == step - count:
            took = (now - self._last[1]) / count
            self.times.append(took if 0 <= took < float("inf") else 0.0)  # a clock that went back, or none at all
        self._last = step, now


def condensed(times: Sequence[float]) -> list[float]:
    """Return at most ``REPORTED`` numbers for these times: medians of as many parts, one after the other.

    >>> condensed([1.0, 5.0, 2.0])
    [1.0, 5.0, 2.0]
    >>> condensed([1.0, 1.0, 9.0] * 8)
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    parts = min(len(times), REPORTED)
    cuts = [len(times) * part // parts for part in range(parts + 1)] if parts else []
    return [median(times[begin:end]) for begin, end in pairwise(cuts)]
