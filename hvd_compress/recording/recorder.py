"""The recorder for a training script: three lines, whatever the framework."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from hvd_compress.compressor import Compressor
from hvd_compress.files import check_writable
from hvd_compress.recording.horovod_own import recognized
from hvd_compress.recording.outputs import CSVOutput, Output, TensorBoardOutput, WandbOutput
from hvd_compress.recording.record import PHASES, Record, machine, versions
from hvd_compress.statistics import Tally
from hvd_compress.validation import require_int, shown

PACKAGES = ("horovod", "torch", "tensorflow", "numpy", "hvd-compress")
"""Whose versions a record has."""
OF_STEPS = (
    *("train/loss", "bytes/step", "bytes/total", "compression/ratio", "compression/achieved", "ms/step"),
    *(f"ms/{phase}" for phase in PHASES),
)
OF_TESTS = ("test/accuracy", "test/loss")


class Recorder:
    """Notes what a training sends and how long its steps take, for ``hvd-compress compare`` and for those who watch.

        with hvd_compress.Recorder(compression, "runs/sidco.json", rank=hvd.rank(), ranks=hvd.size()) as recorder:
            for epoch in range(epochs):
                for batch in batches:
                    ...
                    recorder.step(loss.item())
                recorder.epoch(accuracy=accuracy)

    Rank 0 records; on the other ranks every method does nothing. The time of a step is the time from one call of
    ``step`` to the next; that between an epoch's last step and its call of ``epoch``, where a model may be tested,
    counts for nothing. Of it, ``compress``, ``wait`` and ``decompress`` are what the compressor says of itself, and the
    rest is ``compute``. Where they went on beside the backward pass they may be more than the step: then they are shown
    in proportion.

    The file is written after every epoch and at the end; a run that fails before its first step leaves the file of an
    earlier run as it is. While the run goes on, every few steps and at the end of an epoch, figures (means of the steps
    since the last time) may go to a CSV file, to TensorBoard and to Weights & Biases, under the same names:
    ``train/loss``, ``bytes/step``, ``bytes/total``, ``compression/ratio`` (how many times less was sent),
    ``compression/achieved`` (elements sent over those meant to be sent), ``ms/step``, ``ms/compute``, ``ms/compress``,
    ``ms/wait``, ``ms/decompress``, and after an epoch ``test/accuracy`` and ``test/loss``.

    Args:
        compression: the compressor that Horovod was given. For a run to compare with: ``hvd.Compression.none`` (or
            None) or ``hvd.Compression.fp16``, which send 4 and 2 bytes of each of ``parameters``.
        path: the JSON file.
        rank: this process's rank.
        ranks: how many there are; runs of as many ranks are compared.
        label: what the run is called in tables and pictures; by default the compressor.
        model: the name of the model; runs of one model are compared.
        data: the name of the data set; runs of one data set are compared.
        parameters: how many parameters the model has; by default what the compressor has been given.
        every: how many steps there are between figures, and between losses in the record; fewer before the end of an
            epoch.
        csv: a CSV file.
        tensorboard: a folder for TensorBoard (needs tensorboardX).
        wandb: arguments of ``wandb.init``, such as ``{"project": "mine", "mode": "offline"}`` (needs wandb).
        flags: anything that JSON can hold about the run: its seed, epochs, batch size, learning rate.

    Raises:
        TypeError: ``compression`` is none of these.
        ValueError: ``parameters`` are needed and not given; or an argument is wrong.
        OSError: a file cannot be written there. (Said at once, not after the training.)
        ImportError: tensorboardX or wandb is not installed; says how to install it.
    """

    def __init__(
        self,
        compression: Any,
        path: Path | str,
        *,
        rank: int = 0,
        ranks: int = 1,
        label: str | None = None,
        model: str = "model",
        data: str = "data",
        parameters: int | None = None,
        every: int = 10,
        csv: Path | str | None = None,
        tensorboard: Path | str | None = None,
        wandb: Mapping[str, Any] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> None:
        require_int("ranks", ranks, 1)
        require_int("rank", rank, 0, ranks - 1)
        require_int("every", every, 1)
        self._compressor = compression if isinstance(compression, Compressor) else None
        horovods = None if self._compressor else recognized(compression)
        if horovods and parameters is None:
            raise ValueError(f"parameters must be given, for {shown(compression)} does not count its bytes")
        self._path, self._every, self._writes = Path(path), every, rank == 0
        self._parameters = parameters
        self._dense_bytes = horovods.width * (parameters or 0) if horovods else 0
        self._outputs: list[Output] = []
        self.record = Record(
            {
                "label": label or (horovods.label if horovods else repr(compression)),
                "flags": dict(flags or {}),
                "compression": horovods.name if horovods else compression.comparable_config(),
                "data": {"name": data, "note": ""},
                "model": {"name": model, "parameters": parameters or 0},
                "ranks": ranks,
                "machine": machine(),
                "versions": versions(*PACKAGES),
            }
        )
        if self._writes:
            check_writable(self._path)
            if csv is not None:
                self._outputs.append(CSVOutput(Path(csv), (*OF_STEPS, *OF_TESTS)))
            if tensorboard is not None:
                self._outputs.append(TensorBoardOutput(Path(tensorboard)))
            if wandb is not None:
                self._outputs.append(WandbOutput(wandb, self.record.about))
        self._losses: list[float] = []
        self._steps = 0
        self._reported = 0  # of these, in figures that were handed out
        self._in_epochs = 0  # and in epochs that are done
        self._epoch_seconds = 0.0
        self._before = self._tally()
        self._since = perf_counter()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._close(complete=kind is None)

    def step(self, loss: float | None = None) -> None:
        """Note that a step is done; ``loss`` is this rank's, if there is one."""
        if not self._writes:
            return
        now, tally = perf_counter(), self._tally()
        done, whole = tally.minus(self._before), now - self._since
        own = {"compress": done.compress, "wait": done.wait, "decompress": done.decompress}
        share = min(1.0, whole / sum(own.values())) if any(own.values()) else 1.0
        own = {phase: share * seconds for phase, seconds in own.items()}
        sent = done.sent_bytes if self._compressor else self._dense_bytes
        self.record.add_step(sent, {"compute": whole - sum(own.values()), **own})
        self._steps += 1
        self._epoch_seconds += whole
        self._before, self._since = tally, now
        if loss is not None:
            self._losses.append(float(loss))
        if self._steps - self._reported == self._every:
            self._report()

    def epoch(self, accuracy: float | None = None, loss: float | None = None) -> None:
        """Note that an epoch is done, with its results on the test set: the accuracy from 0 to 1, and the mean loss."""
        if self._writes:
            tests = {"test_accuracy": accuracy, "test_loss": loss}
            self._end_epoch({name: float(value) for name, value in tests.items() if value is not None})

    def close(self) -> None:
        """Note that the run is complete; the end of a ``with`` block does it."""
        self._close(complete=True)

    def _close(self, *, complete: bool) -> None:
        if not self._writes:
            return
        if self._steps > self._in_epochs:
            self._end_epoch({})
        self._writes = False
        self.record.complete = complete
        self._write()
        for output in self._outputs:
            output.close()

    def _end_epoch(self, known: Mapping[str, float]) -> None:
        """Note an epoch with what is known of its tests; hand out its last steps' figures, and write the record."""
        self._report()
        self.record.epochs.append(
            {
                "epoch": len(self.record.epochs) + 1,
                "sent_bytes": self.record.sent_bytes,
                "seconds": round(self._epoch_seconds, 3),
                **known,
            }
        )
        self._tell({name.replace("_", "/"): value for name, value in known.items()})
        self._epoch_seconds, self._in_epochs = 0.0, self._steps
        self._write()
        self._before, self._since = self._tally(), perf_counter()

    def _tally(self) -> Tally:
        """Return what the compressor has done so far; its ``stats()`` are left to the script."""
        return self._compressor.runtime.reported.now() if self._compressor else Tally()

    def _report(self) -> None:
        """Hand out the figures of the steps since the last time, if there are any."""
        if self._steps == self._reported:
            return
        last = {name: fmean(values[self._reported :]) for name, values in self.record.steps.items()}
        self._reported = self._steps
        sent = last.pop("sent_bytes")
        figures = {"bytes/step": sent, "bytes/total": self.record.sent_bytes, "ms/step": 1e3 * sum(last.values())}
        figures |= {f"ms/{phase}": 1e3 * seconds for phase, seconds in last.items()}
        if sent and self._size():
            figures["compression/ratio"] = 4 * self._size() / sent
        total = self._before
        if total.target:
            figures["compression/achieved"] = total.selected / total.target
        if self._losses:
            figures["train/loss"] = fmean(self._losses)
            self.record.add_loss(figures["train/loss"])
            self._losses.clear()
        self._tell(figures)

    def _tell(self, figures: Mapping[str, float]) -> None:
        for output in self._outputs if figures else ():
            output.add(self._steps, figures)

    def _size(self) -> int:
        """Return how many parameters the model has, as far as is known: float32 elements of what was reduced."""
        total = self._before
        return self._parameters or (total.dense_bytes // (4 * total.steps) if total.steps else 0)

    def _write(self) -> None:
        """Write the record; without a step there is none, and the file of an earlier run stays."""
        if self._steps == 0:
            return
        self.record.about["model"]["parameters"] = self._size()
        if self._compressor:
            self.record.stats = self._before.report()
        self.record.write(self._path)
