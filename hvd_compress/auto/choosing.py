"""The mutable part of an ``Auto``: its trials, what this worker has measured, and what the workers tell each other."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np

from hvd_compress.auto.stopwatch import REPORTED, Stopwatch, condensed
from hvd_compress.auto.trials import Trials
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import Array
from hvd_compress.kernels import CorruptPayload
from hvd_compress.memory import PausableResidual

_log = logging.getLogger(__name__)

REPORT_BYTES = 8 * (2 + REPORTED)
"""A report is float64: whether something is held back, how many times follow, and these."""


class Choosing:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.workers = self.rank = 0
        self.control = ""
        """The parameter whose bucket reports."""
        self.algorithms: tuple[Compressor, ...] = ()
        self.trials = Trials([], 0)
        self.stopwatch = Stopwatch()
        self.memories: weakref.WeakSet[PausableResidual] = weakref.WeakSet()
        self.restored = ""
        """What tells one state from another that training goes on from."""
        self.why = ""

    def said(self) -> Array:
        """Return this worker's report, as bytes."""
        times = condensed(self.stopwatch.times)
        holds = any(array.any() for memory in self.memories for array in memory.arrays().values())
        report = np.zeros(2 + REPORTED, np.float64)
        report[:2] = holds, len(times)
        report[2 : 2 + len(times)] = times
        return report.view(np.uint8)

    def hear(self, step: int, rows: Array) -> None:
        """Take what all workers have reported, from ``rows`` of bytes: the same on every worker.

        Raises:
            CorruptPayload: a row is no report.
        """
        reports = np.ascontiguousarray(rows).view(np.float64)
        if not (np.isin(reports[:, 0], (0, 1)).all() and np.isin(reports[:, 1], range(REPORTED + 1)).all()):
            raise CorruptPayload(f"workers report {reports[:, :2].tolist()}: whether they hold back, and so many times")
        if not (np.isfinite(reports).all() and (reports >= 0).all()):
            raise CorruptPayload("a worker reports step times that are negative or not finite")
        count = int(reports[:, 1].min())
        times = reports[:, 2 : 2 + count].max(axis=0)
        self.stopwatch.times = []
        if self.trials.report(step, bool(reports[:, 0].any()), times.tolist()):
            self._say()

    def report(self) -> dict[str, Any]:
        """Return what ``Auto.stats`` has of the choice."""
        trials = self.trials
        chosen = trials.chosen
        table = [
            {
                "candidate": repr(candidate),
                "seconds": median if times else None,
                "variation": trials.variation(number) if times else None,
                "steps": len(times),
            }
            for number, (candidate, times, median) in enumerate(
                zip(self.algorithms, trials.samples, trials.medians, strict=False)
            )
        ]
        choice = None if chosen is None else repr(self.algorithms[chosen])
        return {"choice": choice, "why": self.why, "trials": trials.looks, "table": table}

    def _say(self) -> None:
        """Write a line about a trial that is over."""
        trials = self.trials
        assert trials.chosen is not None
        times = ", ".join(
            f"{candidate!r} {1000 * median:.4g} ms"
            for candidate, median in zip(self.algorithms, trials.medians, strict=True)
        )
        self.why = f"{self.algorithms[trials.chosen]!r}: a step takes {times} ({trials.spent} steps, {trials.cause})"
        if self.rank == 0:
            _log.info("Auto chose %s", self.why)
