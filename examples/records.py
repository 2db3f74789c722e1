"""Watches a run, step by step: its record with the phases of a step told apart, its bar, and TensorBoard.

``hvd-compress compare`` makes tables and pictures of records. For a script of your own there is
``hvd_compress.Recorder``.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from time import perf_counter
from typing import Any

from hvd_compress.recording.record import Record

# isort: split
from scalars import Scalars


class Stopwatch:
    """Splits a step into phases, with the help of ``Compressor.stats``; without it, all of synchronize is waiting.

    What compression costs is taken out of the phase it was spent in, so that the four add up to the step.
    """

    def __init__(self, compressor: Any, dense_bytes: int) -> None:
        self._compressor = compressor
        self._dense_bytes = dense_bytes
        self._marks: list[tuple[float, float, float, int]] = []

    def mark(self) -> None:
        """Call at the start of a step, before and after ``optimizer.synchronize()``, and at the step's end. Where a
        graph computes and waits at the same time, start and end are all there is: both count as computing."""
        compress, decompress, sent = 0.0, 0.0, 0
        if self._compressor is not None:
            total = self._compressor.stats()["total"]
            compress, decompress = total["seconds"]["compress"], total["seconds"]["decompress"]
            sent = total["sent_bytes"]
        self._marks.append((perf_counter(), compress, decompress, sent))

    def take(self) -> tuple[int, dict[str, float]]:
        """Bytes sent and seconds by phase of the step whose marks have been set."""
        begin, *middle, end = self._marks
        before, after = middle or (end, end)
        self._marks = []
        own = {"compress": end[1] - begin[1], "decompress": end[2] - begin[2]}
        wait = (after[0] - before[0]) - (after[1] - before[1]) - (after[2] - before[2])
        compute = end[0] - begin[0] - wait - sum(own.values())
        sent = end[3] - begin[3] if self._compressor is not None else self._dense_bytes
        return sent, {"compute": compute, "wait": wait, **own}


class Watch(Stopwatch):
    """Fills a record in while a run goes on, moves its bar, and tells TensorBoard. ``mean`` averages a loss over the
    ranks, which all call it in the same steps: ``every`` few, and the last of an epoch."""

    def __init__(
        self,
        record: Record,
        bar: Any,
        scalars: Scalars,
        compressor: Any,
        dense_bytes: int,
        mean: Callable[[float], float],
        every: int,
        epochs: int,
    ) -> None:
        super().__init__(compressor, dense_bytes)
        self._record, self._bar, self._scalars, self._mean = record, bar, scalars, mean
        self._every, self._epochs = every, epochs
        self._epoch = self._steps = 0
        self._began = 0.0
        self._losses: list[float] = []

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Before an epoch's first step; epochs count from 0, ``steps`` have been taken before."""
        self._epoch, self._steps, self._began = epoch, steps, perf_counter()

    def end_step(self, loss: float) -> None:
        """After a step's last mark; ``loss`` is this rank's."""
        self._record.add_step(*self.take())
        self._steps += 1  # not the record's, which is rank 0's when a run is resumed
        self._losses.append(loss)
        self._bar.advance(f"epoch {self._epoch + 1}/{self._epochs} loss {loss:.3f}")
        if len(self._losses) == self._every:
            self._report()

    def _report(self) -> None:
        """Note the loss of the steps since the last time."""
        loss = self._mean(fmean(self._losses))
        self._record.add_loss(loss)
        if self._scalars.written:
            self._scalars.add(self._steps, {"train/loss": loss, **self._recent()})
        self._losses.clear()

    def _recent(self) -> dict[str, float]:
        """Scalars of the steps since the last time, and of bytes so far."""
        record = self._record
        means = {key: fmean(values[-len(self._losses) :]) for key, values in record.steps.items()}
        sent = means.pop("sent_bytes")
        scalars = {
            "bytes/step": sent,
            "bytes/total": record.sent_bytes,
            "compression/ratio": 4 * record.about["model"]["parameters"] / sent,
            "ms/step": 1e3 * sum(means.values()),
            **{f"ms/{phase}": 1e3 * seconds for phase, seconds in means.items()},
        }
        achieved = self._compressor.stats()["total"]["achieved"] if self._compressor is not None else None
        return scalars if achieved is None else {**scalars, "compression/achieved": achieved}

    def seconds(self) -> float:
        """Since the epoch began."""
        return perf_counter() - self._began

    def end_epoch(self, accuracy: float, loss: float, seconds: float) -> None:
        """After an epoch, with its results on the test set and the time that its steps took."""
        if self._losses:
            self._report()
        self._record.epochs.append(
            {
                "epoch": self._epoch + 1,
                "test_accuracy": accuracy,
                "test_loss": loss,
                "sent_bytes": self._record.sent_bytes,
                "seconds": round(seconds, 3),
            }
        )
        self._scalars.add(self._steps, {"test/accuracy": accuracy, "test/loss": loss})
        self._bar.say(f"epoch {self._epoch + 1}/{self._epochs}: test accuracy {accuracy:.2%}, {seconds:.1f} s")
