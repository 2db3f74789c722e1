"""Keras callbacks: one keeps a compressor's state in files, beside a model's checkpoints, and one records a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_compress.compressor import Compressor
from hvd_compress.recording.recorder import Recorder
from hvd_compress.state_files import read_npz, write_npz


def save_state(compression: Compressor, path: Path | str) -> None:
    """Write ``compression.state_dict()`` to a file of NumPy's ``.npz`` format, whole or not at all.

    Raises:
        OSError: it cannot be written: the disk is full, say. A file that was there before is as it was.
    """
    write_npz(compression.state_dict(), Path(path))


def load_state(compression: Compressor, path: Path | str) -> None:
    """Give ``compression``, before its first step, what ``save_state`` wrote.

    What is wrong with the file on one rank concerns all: if it is not there, not of this kind, not whole, or of another
    training, the first step raises the same ValueError, which names the file, on every rank.

    Raises:
        RuntimeError: training with this compressor has already begun.
    """
    try:
        state = read_npz(path)
    except ValueError as error:
        compression.refuse_state(str(error))
    else:
        compression.load_state_dict(state, source=str(path))


class CompressionCheckpoint(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Saves a compressor's state after every epoch, and restores it when training resumes; on every rank.

        model.fit(..., callbacks=[
            CompressionCheckpoint(compression, "checkpoints/{epoch:03d}.npz"),
            *([tf.keras.callbacks.ModelCheckpoint("checkpoints/{epoch:03d}.keras")] if hvd.rank() == 0 else []),
        ])

    What a compressor holds back differs from rank to rank: every rank writes a file of its own,
    ``checkpoints/003.rank1.npz``. Training resumes when ``model.fit`` is given an ``initial_epoch`` above 0: the file
    of that epoch is then read before the first step.

    Args:
        compression: the compressor that the model's optimizer was given.
        path: of the files; ``{epoch}`` counts from 1, as in ``ModelCheckpoint``, and without it one file is
            overwritten. ``{rank}`` stands for the rank; without it ``.rankN`` is put before the suffix.
    """

    def __init__(self, compression: Compressor, path: Path | str) -> None:
        super().__init__()
        self.compression = compression
        path = Path(path)
        self._pattern = str(path if "{rank" in str(path) else path.with_name(f"{path.stem}.rank{{rank}}{path.suffix}"))
        self._begun = False

    def file(self, epoch: int) -> Path:
        """Return this rank's file after ``epoch`` epochs."""
        return Path(self._pattern.format(epoch=epoch, rank=hvd.rank()))

    def on_train_begin(self, logs: Any = None) -> None:
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self._begun and epoch > 0 and self.compression.runtime.driver is None:
            if self.file(epoch).exists():
                load_state(self.compression, self.file(epoch))
            else:
                self.compression.refuse_state(
                    f"training resumes at epoch {epoch}, but this rank's state of the compressor, {self.file(epoch)}, "
                    "is missing; bring it back, or start with initial_epoch=0"
                )
        self._begun = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        save_state(self.compression, self.file(epoch + 1))


class RecorderCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Tells a recorder of every batch and epoch of ``model.fit``, and closes it at the end; on every rank.

        recorder = hvd_compress.Recorder(compression, "runs/sidco.json", rank=hvd.rank(), ranks=hvd.size())
        model.fit(..., validation_data=test, callbacks=[RecorderCallback(recorder)])

    The loss of a batch is what Keras shows: the mean since the epoch began. Behind ``MetricAverageCallback`` in the
    list, the accuracy is the mean of all ranks.

    Args:
        recorder: a ``hvd_compress.Recorder`` that has just been made.
        accuracy: the metric that is the accuracy of the test set.
    """

    def __init__(self, recorder: Recorder, accuracy: str = "val_accuracy") -> None:
        super().__init__()
        self.recorder = recorder
        self._accuracy = accuracy

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.recorder.step((logs or {}).get("loss"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs or {}
        self.recorder.epoch(logs.get(self._accuracy), logs.get("val_loss"))

    def on_train_end(self, logs: Any = None) -> None:
        self.recorder.close()
