"""Candidates of benchmarks/candidates.py take turns, so that what changes on a machine meets all of them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import hvd_compress

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
import quiet
import workloads
from candidates import ALONE, LONG, NONE, Candidate

ROUNDS, TURN, MOST_STEPS = 5, 0.6, 8
"""A candidate has so many turns of about so many seconds, of at most so many steps."""
WITHIN_REACH = 1.4
"""Of those whose steps take at most so many times the fastest's, one may be the fastest."""
BASE = 3
"""The step without communication has so many times the seconds: every ratio is to it."""
CALM_WITHIN = 0.2
"""Seconds that a turn waits for others to leave the machine alone, unless another time is asked for."""


class Rounds:
    """Turns on some batches; ``say`` is told of each, and each waits for so many seconds at most for other programs to
    leave the machine alone."""

    def __init__(self, batches: list[workloads.Batch], say: Callable[[str], None], wait: float = CALM_WITHIN) -> None:
        self._batches = batches
        self._say = say
        self._wait = wait

    def run(self, candidates: list[Candidate], seconds: float) -> None:
        """Rounds until every candidate has had its time."""
        for candidate in candidates:
            candidate.forget()
        order = random.Random(0)
        for number in range(ROUNDS):
            left = [c for c in candidates if c.spent < seconds * (BASE if c.name == ALONE else 1) or not c.steps]
            self._round(order.sample(left, len(left)), number)

    def go_on(self, candidates: list[Candidate], seconds: float) -> None:
        """After ``run``, more rounds of ``Auto``, the last candidate, and of those of its own that may be the fastest,
        for so many seconds each."""
        auto = candidates[-1]
        assert auto.compressor is not None
        own = {line["candidate"] for line in auto.compressor.stats()["auto"]["table"]}
        written = {c: repr(hvd_compress.Dense() if c.name == NONE else c.compressor) for c in candidates}
        medians = {c: median(step["step"] for step in c.steps) for c in candidates if written[c] in own}
        left = [auto, *(c for c, found in medians.items() if found <= WITHIN_REACH * min(medians.values()))]
        ends = {c: c.spent + seconds for c in left}
        order = random.Random(0)
        number = ROUNDS
        while left := [c for c in left if c.spent < ends[c]]:
            self._round(order.sample(left, len(left)), number)
            number += 1

    def _round(self, candidates: list[Candidate], number: int) -> None:
        """A turn of every candidate."""
        for candidate in candidates:
            self._say(f"round {number + 1}, {candidate.name}")
            quiet.wait(self._wait)
            steps = 1
            if candidate.last is not None and candidate.last < LONG:
                steps += min(MOST_STEPS, max(1, int(TURN / candidate.last)))
            candidate.turn(self._batches, steps, number)
