"""The leader's part in training: what the trainer is fed with, in which order, and how its work ends."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from hvd_compress.files import write_whole
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.process import Process
from hvd_compress.lgc.records import DEAD, PUBLISHING, TRAINING, WORSE
from hvd_compress.lgc.training import Outcome, Sample, TrainerDied, Training

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Supervisor:
    """Feeds the trainer, and sees when it is done. The arguments are LGC's; only the leader's has something to do.

    Samples are fed in the order of steps and of their buckets' names, and not before their step is over: in whatever
    order the buckets' exchanges come to their end, the trainer learns the same.
    """

    architecture: Architecture
    seed: int
    similarity: float
    floor: bool
    record_to: str | None
    inline: bool = False
    """Whether training takes place between two steps instead of in a process."""
    status: int = TRAINING
    weights: bytes | None = None
    """What is to be sent to all ranks, once it is there."""
    outcome: Outcome | None = None
    training: Training | None = None
    seconds: float = 0.0
    """The time that feeding took."""
    _waiting: list[Sample] = field(default_factory=list)
    """Samples of a step that may be under way."""
    _ending: bool = False
    _kind: str = ""
    _last_report: dict[str, Any] = field(default_factory=dict)
    _saved: bytes | None = None
    """The state of a trainer that is still to be started."""

    @property
    def wants(self) -> bool:
        """Whether samples are of use."""
        return self.status == TRAINING and not self._ending

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from: a trainer, the state of one, or what came of it."""
        return self.training is not None or self._saved is not None or self.status != TRAINING

    def dismiss(self) -> None:
        """End the trainer, for another rank has it from now on."""
        self._end()
        self._waiting.clear()
        self._ending, self._saved, self.status, self.weights = False, None, TRAINING, None

    def start(self) -> Training:
        """Return the trainer, started if it was not."""
        if self.training is None:
            self.training = self._new()
            self._kind = self.training.kind
            self._saved = None
        return self.training

    def take(self, sample: Sample) -> None:
        """Take a sample, to be fed when its step is over; write it down if that is wanted."""
        if self.record_to is not None:
            path = Path(self.record_to) / f"{sample.name}.npz"
            vectors, entries = sample.vectors, np.int64(sample.entries)
            write_whole(path, lambda file: np.savez(file, vectors=vectors, entries=entries))
        self.feed_before(sample.step)
        self._waiting.append(sample)

    def feed_before(self, step: float) -> None:
        """Feed the trainer with what it has not got of the steps before this one, as long as it wants any."""
        ready = [sample for sample in self._waiting if sample.step < step]
        self._waiting = [sample for sample in self._waiting if sample.step >= step]
        started = perf_counter()
        try:
            for sample in sorted(ready, key=lambda sample: sample.name):
                if self.wants:
                    self.start().feed(sample.vectors, sample.entries)
        except TrainerDied as error:
            self._died(error)
        self.seconds += perf_counter() - started

    def look(self, *, enough: bool) -> None:
        """See how training stands, and end it when it has had ``enough`` steps or is of no more use."""
        if self.status != TRAINING:
            return
        try:
            training = self.start()
            if not enough and not training.stalled():
                return
            self._ending = True
            outcome = training.finish()
        except TrainerDied as error:
            self._died(error)
            return
        if outcome is None:
            return
        self.outcome = outcome
        self._end()
        if outcome.problem and self.floor:
            self.status = WORSE
            log.warning("LGC stays with top-k, for its autoencoder is of no use here: %s", outcome.problem)
        else:
            self.status = PUBLISHING
            self.weights = outcome.weights

    def state(self) -> bytes:
        """Return the trainer's state, with all that it was fed until now; nothing if there is no trainer."""
        self.feed_before(float("inf"))
        if self.training is not None:
            try:
                return self.training.state()
            except TrainerDied as error:
                self._died(error)
        return self._saved or b""

    def load(self, status: int, weights: bytes, state: bytes) -> None:
        """Go on from what another one's ``status``, ``weights`` and ``state`` were."""
        self.status, self.weights, self._saved = status, weights or None, state or None

    def report(self) -> dict[str, Any]:
        """Return what statistics say of the trainer; nothing if there was none."""
        if not self._kind:
            return {}
        return {"kind": self._kind, **(self.training.report() if self.training is not None else self._last_report)}

    def _new(self) -> Training:
        if self.inline:
            from hvd_compress.lgc.inline import Inline  # which imports torch

            return Inline(self.architecture, self.seed, self.similarity, self._saved)
        return Process(self.architecture, self.seed, self.similarity, self._saved)

    def _died(self, error: Exception) -> None:
        self.status = DEAD
        log.warning("LGC stays with top-k: %s", error)
        self._end()

    def _end(self) -> None:
        if self.training is not None:
            self._last_report = self.training.report()
            self.training.close()
        self.training = None

    def __del__(self) -> None:
        if self.training is not None:
            self.training.close()
