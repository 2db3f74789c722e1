"""Train on Fashion-MNIST under Horovod and TensorFlow, with or without gradient compression.

    horovodrun -np 2 python examples/train_tensorflow.py --compression sidco --ratio 0.01 --record sidco.json

With ``model.fit``, or with a loop of its own (``--loop custom``). What a training script of your own needs is one of
the two lines marked (1), with a compressor; the rest is what any has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.drivers.keras import load_state, save_state

# isort: split
import flags
import job
import networks_tensorflow as networks


class Training(job.Job):
    """One run with TensorFlow."""

    hvd = hvd
    packages = ("tensorflow-cpu", "tf-keras")

    def __init__(self, chosen: argparse.Namespace, compressor: hvd_compress.Compressor | None) -> None:
        super().__init__(chosen, compressor)
        self.model = networks.network(chosen.model, chosen.width)
        self.loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # Keras's decay goes past the momentum, PyTorch's through it, which is 1 / (1 - momentum) times as much
        decay = chosen.optimizer_decay / (1 - chosen.momentum)
        self.optimizer = tf.keras.optimizers.SGD(chosen.lr, momentum=chosen.momentum, weight_decay=decay)
        if chosen.loop == "fit":
            self.optimizer = hvd_keras.DistributedOptimizer(
                self.optimizer,
                compression=self.compression,  # (1) compression=hvd_compress.SIDCo(ratio=0.01), say
            )
        self.optimizer.build(self.model.trainable_variables)
        self.prepare(sum(v.shape.num_elements() for v in self.model.trainable_variables))
        hvd.broadcast_variables(self.state(), root_rank=0)

    def set_up(self) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        tf.config.threading.set_inter_op_parallelism_threads(2)
        tf.keras.utils.set_random_seed(self.chosen.seed)

    def state(self) -> list[Any]:
        """The variables of model and optimizer."""
        return [*self.model.variables, *self.optimizer.variables]

    def train(self) -> None:
        if self.chosen.loop == "custom":
            self.loop()
        else:
            self.fit()

    def fit(self) -> None:
        """Training with ``model.fit``."""
        self.model.compile(self.optimizer, loss=self.loss_of)
        epochs = range(self.first_epoch, self.last_epoch)
        source = tf.data.Dataset.from_generator(
            lambda: (batch for epoch in epochs for batch in self.batches(epoch)),
            output_signature=(tf.TensorSpec((None, 28, 28)), tf.TensorSpec((None,), tf.int64)),
        )
        self.model.fit(
            source,
            initial_epoch=self.first_epoch,
            epochs=self.last_epoch,
            steps_per_epoch=self.epoch_steps,
            callbacks=[Steps(self)],
            verbose=0,
        )

    def loop(self) -> None:
        """The same, by hand."""

        @tf.function
        def step(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.loss_of(labels, self.model(images, training=True))
            tape = hvd.DistributedGradientTape(
                tape,
                compression=self.compression,  # (1) compression=hvd_compress.SIDCo(ratio=0.01), say, made outside
            )
            variables = self.model.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        for epoch in range(self.first_epoch, self.last_epoch):
            self.begin_epoch(epoch)
            for number, (images, labels) in enumerate(self.batches(epoch)):
                self.watch.mark()
                self.optimizer.learning_rate.assign(self.learning_rate(epoch * self.epoch_steps + number))
                loss = float(step(tf.constant(images), tf.constant(labels)))
                self.watch.mark()
                self.watch.end_step(loss)
            self.end_epoch(epoch)

    def evaluate(self) -> tuple[float, float]:
        for variable in self.model.non_trainable_variables:  # one model, not one for each rank's BatchNorm
            variable.assign(hvd.allreduce(variable, name=f"buffer.{variable.name.replace(':', '_')}"))
        sums = np.zeros(2)
        for images, labels in self.test_batches():
            logits = self.model(images, training=False).numpy()
            losses = tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            sums += (logits.argmax(1) == labels).sum(), losses.numpy().sum(dtype=np.float64)
        sums = hvd.allreduce(tf.constant(sums), name="evaluation", op=hvd.Sum).numpy() / len(self.data.test_images)
        return float(sums[0]), float(sums[1])

    def mean_of(self, loss: float) -> float:
        return float(hvd.allreduce(tf.constant(loss), name="loss"))

    def weights(self) -> Iterable[Any]:
        return (variable.numpy() for variable in self.model.variables)

    def save(self, path: Path, about: dict[str, Any]) -> None:
        arrays = {f"variable{number}": variable.numpy() for number, variable in enumerate(self.state())}
        with path.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    def load(self, path: Path) -> tuple[dict[str, Any], Callable[[], None]]:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = [file[f"variable{number}"] for number, _ in enumerate(self.state())]

        def take() -> None:
            for variable, array in zip(self.state(), arrays, strict=True):
                variable.assign(array)

        return about, take

    def save_compressor(self, path: Path) -> None:
        assert self.compressor is not None
        save_state(self.compressor, path)

    def load_compressor(self, path: Path) -> None:
        assert self.compressor is not None
        load_state(self.compressor, path)


class Steps(tf.keras.callbacks.Callback):
    """Tells the job what ``model.fit`` is doing."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training = training

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.summed = epoch, 0.0
        self.training.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.training.watch.mark()
        rate = self.training.learning_rate(self.epoch * self.training.epoch_steps + batch)
        self.training.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.training.watch.mark()
        summed = float(logs["loss"]) * (batch + 1)  # Keras reports the mean of the epoch so far
        self.training.watch.end_step(summed - self.summed)
        self.summed = summed

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.training.end_epoch(epoch)


def add_loop(parser: flags.Parser) -> None:
    parser.add_argument("--loop", choices=("fit", "custom"), default="fit", help="model.fit, or a loop of its own")


if __name__ == "__main__":
    job.main(Training, __doc__.splitlines()[0], add_loop)
