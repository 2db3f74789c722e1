"""What a training run is under any framework: data, record, checkpoints, and what is said to the user."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import hvd_compress
from hvd_compress.recording.horovod_own import HOROVOD
from hvd_compress.recording.record import Record, machine, versions

# isort: split
import checkpoints
import fashion_mnist
import flags
import progress
import records
import scalars

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises from 0."""


class Job(ABC):
    """One run. A subclass makes ``model`` and ``optimizer`` in its constructor, and then calls ``prepare``."""

    hvd: ClassVar[Any]
    """``horovod.torch`` or ``horovod.tensorflow``: of what is called here, they have the same."""
    packages: ClassVar[tuple[str, ...]]
    """Whose versions the record has."""

    def __init__(self, chosen: argparse.Namespace, compressor: hvd_compress.Compressor | None) -> None:
        hvd = self.hvd
        self.chosen = chosen
        self.compressor = compressor
        self.threads = chosen.threads or threads_of(os.environ.get("OMP_NUM_THREADS", ""), hvd.local_size())
        self.set_up()
        self.data = fashion_mnist.load(
            chosen.data_dir, chosen.data, first_on_host=hvd.local_rank() == 0, gather=self.gather
        ).limited(chosen.train_limit)
        images = len(self.data.train_images)
        self.epoch_steps = fashion_mnist.steps_per_epoch(images, chosen.batch_size, hvd.size())
        if self.epoch_steps == 0:
            raise fashion_mnist.DataError(
                f"{images} images are not one batch of {chosen.batch_size} for each of {hvd.size()} ranks; "
                "take a smaller --batch-size"
            )
        self.steps = self.epoch_steps * chosen.epochs
        first = self.data.train_images[:10000]
        self.mean, self.std = first.mean(dtype=np.float64), first.std(dtype=np.float64, ddof=1)
        self.compression: Any = compressor  # compression = hvd_compress.SIDCo(ratio=0.01), say
        if compressor is None:
            self.compression = getattr(hvd.Compression, chosen.compression)
        self.first_epoch = 0
        self.last_epoch = min(chosen.epochs, chosen.stop_after or chosen.epochs)

    def prepare(self, parameters: int) -> None:
        """Begin the record of a model with so many parameters, and go on from the checkpoint if told to."""
        self.record = Record(self._about(parameters))
        self._dense_bytes = 0 if self.compressor else HOROVOD[self.chosen.compression].width * parameters
        if self.chosen.resume:
            self.first_epoch = checkpoints.restore(self.chosen.checkpoint, self)

    def introduce(self) -> None:
        """Say what is about to be trained, and on what."""
        if self.hvd.rank() != 0:
            return
        if self.data.note:
            print(f"NOTE: {self.data.note}. Training on scikit-learn's digits instead: accuracies mean nothing.")
        if self.hvd.size() == 1 and self.compressor is not None:
            print("NOTE: one rank has nobody to send to; nothing is compressed. Use horovodrun -np 2.")
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} each"
        print(f"{self.chosen.label}: {self.hvd.size()} ranks, {threads}, {self.data.name}", flush=True)

    def run(self) -> None:
        """Train, evaluate after every epoch, save what was asked for."""
        chosen = self.chosen
        first = self.hvd.rank() == 0
        begin = self.first_epoch * self.epoch_steps
        with (
            progress.Bar(first, chosen.label, self.steps) as bar,
            scalars.Scalars(chosen.tensorboard if first else None, begin) as board,
        ):
            self.watch = records.Watch(
                self.record,
                bar,
                board,
                self.compressor,
                self._dense_bytes,
                self.mean_of,
                chosen.record_every,
                chosen.epochs,
            )
            self.train()
        digest = hashlib.sha256()
        for array in self.weights():
            digest.update(np.ascontiguousarray(array).tobytes())
        weights = digest.hexdigest()[:32]
        if set(self.gather(weights)) != {weights}:
            raise RuntimeError("the ranks ended with different weights")
        self.record.weights, self.record.complete = weights, self.last_epoch == chosen.epochs
        if self.compressor:
            stats = self.compressor.stats()
            self.record.stats = stats.pop("total") | {key: value for key, value in stats.items() if key != "recent"}
        if chosen.record and self.hvd.rank() == 0:
            self.record.write(chosen.record)

    def begin_epoch(self, epoch: int) -> None:
        """Before the steps of every epoch."""
        self.watch.begin_epoch(epoch, epoch * self.epoch_steps)

    def end_epoch(self, epoch: int) -> None:
        """After the steps of every epoch: evaluate, note it, save a checkpoint."""
        seconds = self.watch.seconds()
        self.watch.end_epoch(*self.evaluate(), seconds)
        if self.chosen.checkpoint:
            checkpoints.save(self.chosen.checkpoint, epoch + 1, self)

    def batches(self, epoch: int) -> Iterable[tuple[Any, Any]]:
        """This rank's images (float32, normalized; batch by 28 by 28) and labels in an epoch."""
        data, chosen, hvd = self.data, self.chosen, self.hvd
        order = (len(data.train_images), chosen.batch_size, chosen.seed, epoch, hvd.rank(), hvd.size())
        for batch in fashion_mnist.batches(*order):
            yield self.scaled(data.train_images[batch]), data.train_labels[batch]

    def test_batches(self) -> Iterable[tuple[Any, Any]]:
        """This rank's share of the test set, in the same form."""
        images = self.data.test_images[self.hvd.rank() :: self.hvd.size()]
        labels = self.data.test_labels[self.hvd.rank() :: self.hvd.size()]
        for at in range(0, len(images), 500):
            yield self.scaled(images[at : at + 500]), labels[at : at + 500]

    def scaled(self, images: Any) -> Any:
        """Images as the networks want them."""
        return (images.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)

    def learning_rate(self, step: int) -> float:
        """Linear rise over the first steps, then half a cosine down to 0."""
        rise = max(1, int(WARM_UP * self.steps))
        if step < rise:
            return float(self.chosen.lr * ((step + 1) / rise))
        return float(self.chosen.lr * (0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))))

    @classmethod
    def gather(cls, thing: Any) -> list[Any]:
        """From all ranks; Horovod's own wants two of them under TensorFlow."""
        return cls.hvd.allgather_object(thing) if cls.hvd.size() > 1 else [thing]  # type: ignore[no-any-return]

    @abstractmethod
    def set_up(self) -> None:
        """Give the framework its seed and its ``threads``, before anything else."""

    @abstractmethod
    def train(self) -> None:
        """The epochs from ``first_epoch`` up to ``last_epoch``, with ``watch`` told of every step."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """Accuracy and mean loss on the test set, each rank taking its share."""

    @abstractmethod
    def mean_of(self, loss: float) -> float:
        """The mean over the ranks."""

    @abstractmethod
    def weights(self) -> Iterable[Any]:
        """Parameters and buffers."""

    @abstractmethod
    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write model, optimizer and ``about`` (plain values) to a file."""

    @abstractmethod
    def load(self, path: Path) -> tuple[dict[str, Any], Callable[[], None]]:
        """Read such a file: what was ``about``, and a function that lets model and optimizer have theirs."""

    @abstractmethod
    def save_compressor(self, path: Path) -> None:
        """Write this rank's state of the compressor to a file."""

    @abstractmethod
    def load_compressor(self, path: Path) -> None:
        """Let the compressor have that state."""

    def _about(self, parameters: int) -> dict[str, Any]:
        """The part of the record that is known before the first step."""
        return {
            "label": self.chosen.label,
            "flags": {key: str(v) if isinstance(v, Path) else v for key, v in vars(self.chosen).items()},
            "compression": self.compressor.to_config() if self.compressor else self.chosen.compression,
            "data": self.data.describe(),
            "model": {"name": self.chosen.model, "parameters": parameters},
            "ranks": self.hvd.size(),
            "threads": self.threads,
            "machine": machine(),
            "versions": versions("horovod", *self.packages, "numpy", "hvd-compress"),
        }


def threads_of(told: str, ranks: int) -> int:
    """Threads of one of so many ranks on a host: what OMP_NUM_THREADS says, or a share of the cores. (A rank that is
    bound sees its own cores alone; those that bind it set the variable, as launch/mpirun.sh does.)"""
    return int(told) if told.isdecimal() and int(told) else max(1, len(os.sched_getaffinity(0)) // ranks)


def main(job: type[Job], description: str, add: Callable[[flags.Parser], None] = lambda _: None) -> None:
    """Parse the flags (``add`` may add some), train, and turn what the user can put right into one line."""
    chosen, compressor = flags.parse(description, add=add)
    job.hvd.init()
    try:
        training = job(chosen, compressor)
        training.introduce()
        training.run()
    except (fashion_mnist.DataError, checkpoints.CheckpointError) as error:  # raised on every rank alike
        if job.hvd.rank() == 0:
            print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr, flush=True)
        job.gather("said")  # mpirun ends all ranks when the first one leaves
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
