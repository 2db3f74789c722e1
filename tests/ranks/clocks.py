"""Clocks for ``Auto``, which no scenario leaves to the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Clock:
    """The clock of one rank's ``Auto``: a step takes so many seconds by what it runs; times by the rank plus one, for
    no two ranks have the same clock. Call ``tick`` with the step before each."""

    def __init__(self, auto: Any, rank: int, seconds: Mapping[str, float]) -> None:
        self._auto = auto
        self._rank = rank
        self._seconds = seconds
        self._now = 1e6 * rank
        self._ran = ""
        auto.choosing.stopwatch.clock = lambda: self._now

    def tick(self, step: int) -> str:
        """Let the time of this step pass; return the class of the compressor that it runs, or ``flush``."""
        choosing = self._auto.choosing
        segment = choosing.trials.at(step) if step else None
        name = "flush"
        if segment is not None and segment.kind != "flush":
            name = type(choosing.algorithms[segment.candidate]).__name__
        self._now += (1 + self._rank) * self._seconds.get(name, 1.0)
        return name


def go_wild(auto: Any, rank: int) -> None:
    """Give this rank's ``Auto`` a clock that jumps to and fro, and at times is no number."""
    rng = np.random.default_rng(rank)
    auto.choosing.stopwatch.clock = lambda: float(rng.choice([np.nan, np.inf, rng.normal() * 1e9, rng.normal()]))
