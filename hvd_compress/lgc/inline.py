"""A trainer that works between two steps of the training it is fed by; importing this imports torch."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from hvd_compress.kernels import Float32
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.trainer import BATCHES_PER_SAMPLE, Trainer
from hvd_compress.lgc.training import Outcome


class Inline:
    """Trains in the worker itself: it takes its time, and does the same whenever it is repeated."""

    kind = "inline"

    def __init__(self, architecture: Architecture, seed: int, similarity: float, state: bytes | None) -> None:
        self._trainer = Trainer(architecture, seed, similarity)
        if state is not None:
            self._trainer.load_state(state)
        self._seconds = 0.0

    def feed(self, vectors: Float32, entries: int) -> None:
        started = perf_counter()
        if self._trainer.add(vectors, entries) and not self._trainer.stalled:
            self._trainer.train(BATCHES_PER_SAMPLE)
        self._seconds += perf_counter() - started

    def stalled(self) -> bool:
        return self._trainer.stalled

    def finish(self) -> Outcome | None:
        return self._trainer.finish()

    def state(self) -> bytes:
        return self._trainer.state()

    def report(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "samples": trainer.samples,
            "refused": trainer.refused,
            "dropped": 0,
            "batches": trainer.batches,
            "error": trainer.best if trainer.best < float("inf") else None,
            "seconds": self._seconds,
        }

    def close(self) -> None:
        """Do nothing: there is nothing to end."""
