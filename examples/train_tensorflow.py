"""Train on Fashion-MNIST under Horovod and TensorFlow, with or without gradient compression.

    horovodrun -np 2 python examples/train_tensorflow.py --compression sidco --ratio 0.01 --record sidco.json

With ``model.fit``, or with a loop of its own (``--loop custom``). What a training script of your own needs is the line
marked (1) and one of the two marked (2); the rest is what any has.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.drivers.keras import CompressionCheckpoint

# isort: split
import fashion_mnist
import flags
import networks_tensorflow as networks
import progress
import records

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises from 0."""


@tf.keras.utils.register_keras_serializable()  # Horovod makes the optimizer anew from its configuration
class CosineWithWarmUp(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Linear rise over the first steps, then half a cosine down to 0."""

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps, self.rise = peak, steps, max(1, int(WARM_UP * steps))

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        fall = (step - self.rise) / max(1, self.steps - self.rise)
        cosine = 0.5 * (1 + tf.cos(math.pi * fall))
        return self.peak * tf.where(step < self.rise, (step + 1) / self.rise, cosine)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps}


class Training:
    """One run: model, data, optimizer, record."""

    def __init__(self, chosen: argparse.Namespace, compressor: hvd_compress.Compressor | None) -> None:
        self.chosen = chosen
        self.compressor = compressor
        self.threads = chosen.threads or max(1, len(os.sched_getaffinity(0)) // hvd.local_size())
        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        tf.config.threading.set_inter_op_parallelism_threads(2)
        tf.keras.utils.set_random_seed(chosen.seed)
        self.data = fashion_mnist.load(
            chosen.data_dir, chosen.data, first_on_host=hvd.local_rank() == 0, gather=gather
        ).limited(chosen.train_limit)
        images = len(self.data.train_images)
        self.epoch_steps = fashion_mnist.steps_per_epoch(images, chosen.batch_size, hvd.size())
        if self.epoch_steps == 0:
            raise fashion_mnist.DataError(
                f"{images} images are not one batch of {chosen.batch_size} for each of {hvd.size()} ranks; "
                "take a smaller --batch-size"
            )
        scaled = self.data.train_images[:10000].astype(np.float32)
        self.mean, self.std = float(scaled.mean()), float(scaled.std())
        self.model = networks.network(chosen.model, chosen.width)
        self.loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.compression = compressor  # (1) compression = hvd_compress.SIDCo(ratio=0.01), say
        if compressor is None:
            self.compression = hvd.Compression.fp16 if chosen.compression == "fp16" else hvd.Compression.none
        rate = CosineWithWarmUp(chosen.lr, self.epoch_steps * chosen.epochs)
        # Keras's decay goes past the momentum, PyTorch's through it, which is 1 / (1 - momentum) times as much
        decay = chosen.weight_decay / (1 - chosen.momentum)
        self.optimizer = tf.keras.optimizers.SGD(rate, momentum=chosen.momentum, weight_decay=decay)
        hvd.broadcast_variables(self.model.variables, root_rank=0)
        self.record = records.Record(self.about())
        width = 2 if chosen.compression == "fp16" else 4
        self.dense_bytes = width * self.record.about["model"]["parameters"]

    def introduce(self) -> None:
        """Say what is about to be trained, and on what."""
        if self.data.note:
            print(f"NOTE: {self.data.note}. Training on scikit-learn's digits instead: accuracies mean nothing.")
        if hvd.size() == 1 and self.compressor is not None:
            print("NOTE: one rank has nobody to send to; nothing is compressed. Use horovodrun -np 2.")
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} each"
        print(f"{self.chosen.label}: {hvd.size()} ranks, {threads}, {self.data.name}", flush=True)

    def about(self) -> dict[str, Any]:
        """The part of the record that is known before the first step."""
        return {
            "label": self.chosen.label,
            "flags": {key: str(v) if isinstance(v, Path) else v for key, v in vars(self.chosen).items()},
            "compression": self.compressor.to_config() if self.compressor else self.chosen.compression,
            "data": self.data.describe(),
            "model": {
                "name": self.chosen.model,
                "parameters": sum(v.shape.num_elements() for v in self.model.trainable_variables),
            },
            "ranks": hvd.size(),
            "threads": self.threads,
            "machine": records.machine(),
            "versions": records.versions("horovod", "tensorflow-cpu", "numpy", "hvd-compress"),
        }

    def run(self) -> None:
        """Train, evaluate after every epoch, save what was asked for."""
        with progress.Bar(hvd.rank() == 0, self.chosen.label, self.epoch_steps * self.chosen.epochs) as bar:
            watch = Watch(self, bar)
            if self.chosen.loop == "custom":
                self.loop(watch)
            else:
                self.fit(watch)
        weights = hashlib.sha256(b"".join(v.numpy().tobytes() for v in self.model.variables)).hexdigest()[:32]
        if set(gather(weights)) != {weights}:
            raise RuntimeError("the ranks ended with different weights")
        self.record.weights, self.record.complete = weights, True
        self.record.stats = self.compressor.stats()["total"] if self.compressor else None
        if self.chosen.record and hvd.rank() == 0:
            self.record.write(self.chosen.record)

    def fit(self, watch: Watch) -> None:
        """Training with ``model.fit``."""
        optimizer = hvd_keras.DistributedOptimizer(self.optimizer, compression=self.compression)  # (2)
        self.model.compile(optimizer, loss=self.loss_of)
        callbacks = [watch]
        if self.chosen.checkpoint and self.compressor is not None and hvd.size() > 1:
            callbacks.append(CompressionCheckpoint(self.compressor, f"{self.chosen.checkpoint}.epoch{{epoch}}"))
        epochs = range(self.chosen.epochs)
        source = tf.data.Dataset.from_generator(
            lambda: (batch for epoch in epochs for batch in self.batches(epoch)),
            output_signature=(tf.TensorSpec((None, 28, 28, 1)), tf.TensorSpec((None,), tf.int64)),
        )
        self.model.fit(
            source, epochs=self.chosen.epochs, steps_per_epoch=self.epoch_steps, callbacks=callbacks, verbose=0
        )

    def loop(self, watch: Watch) -> None:
        """The same, by hand."""

        @tf.function
        def step(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.loss_of(labels, self.model(images, training=True))
            tape = hvd.DistributedGradientTape(tape, compression=self.compression)  # (2)
            variables = self.model.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        for epoch in range(self.chosen.epochs):
            watch.on_epoch_begin(epoch)
            for number, (images, labels) in enumerate(self.batches(epoch)):
                watch.on_train_batch_begin(number)
                loss = float(step(tf.constant(images), tf.constant(labels)))
                watch.on_train_batch_end(number, {"loss": loss})
            watch.on_epoch_end(epoch)

    def batches(self, epoch: int) -> Any:
        """This rank's batches of an epoch."""
        data = self.data
        order = (len(data.train_images), self.chosen.batch_size, self.chosen.seed, epoch, hvd.rank(), hvd.size())
        for batch in fashion_mnist.batches(*order):
            yield self.scaled(data.train_images[batch]), data.train_labels[batch].astype(np.int64)

    def scaled(self, images: Any) -> Any:
        """Images as the network wants them."""
        return ((images.astype(np.float32) - self.mean) / self.std)[..., None]

    def evaluate(self) -> tuple[float, float]:
        """Accuracy and mean loss on the test set, each rank taking its share."""
        for variable in self.model.non_trainable_variables:  # one model, not one for each rank's BatchNorm
            variable.assign(hvd.allreduce(variable, name=f"buffer.{variable.name.replace(':', '_')}"))
        images = self.data.test_images[hvd.rank() :: hvd.size()]
        labels = self.data.test_labels[hvd.rank() :: hvd.size()].astype(np.int64)
        logits = np.concatenate(
            [self.model(self.scaled(images[at : at + 500]), training=False) for at in range(0, len(images), 500)]
        )
        losses = tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        sums = tf.stack([np.float64((logits.argmax(1) == labels).sum()), np.float64(losses.numpy().sum())])
        sums = hvd.allreduce(sums, name="evaluation", op=hvd.Sum).numpy() / len(self.data.test_images)
        return float(sums[0]), float(sums[1])


class Watch(tf.keras.callbacks.Callback):
    """Keeps the record: what was sent in every step, the loss now and then, the accuracy of every epoch."""

    def __init__(self, training: Training, bar: progress.Bar) -> None:
        super().__init__()
        self.training, self.record, self.bar = training, training.record, bar
        self.losses: list[float] = []
        self.began = self.step_began = 0.0
        self.before: dict[str, Any] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.began, self.summed = epoch, time.perf_counter(), 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.before = self.total()
        self.step_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self.step_began
        after = self.total()
        own = {key: after["seconds"][key] - self.before["seconds"][key] for key in ("compress", "decompress")}
        # a graph computes and waits at the same time: both are in "compute"
        phases = {"compute": seconds - sum(own.values()), "wait": 0.0, **own}
        sent = (
            after["sent_bytes"] - self.before["sent_bytes"] if self.training.compressor else self.training.dense_bytes
        )
        self.record.add_step(sent, phases)
        loss = float(logs["loss"])
        if self.training.chosen.loop == "fit":  # Keras reports the mean of the epoch so far
            loss, self.summed = loss * (batch + 1) - self.summed, loss * (batch + 1)
        self.losses.append(loss)
        self.bar.advance(f"epoch {self.epoch + 1}/{self.training.chosen.epochs} loss {loss:.3f}")
        if len(self.record.steps["sent_bytes"]) % self.training.chosen.record_every == 0:
            self.record.add_loss(float(hvd.allreduce(tf.constant(np.mean(self.losses)), name="loss")))
            self.losses.clear()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self.began
        accuracy, loss = self.training.evaluate()
        self.record.epochs.append(
            {
                "epoch": epoch + 1,
                "test_accuracy": accuracy,
                "test_loss": loss,
                "sent_bytes": self.record.sent_bytes,
                "seconds": round(seconds, 3),
            }
        )
        self.bar.say(f"epoch {epoch + 1}/{self.training.chosen.epochs}: test accuracy {accuracy:.2%}, {seconds:.1f} s")

    def total(self) -> dict[str, Any]:
        """The compressor's statistics so far."""
        compressor = self.training.compressor
        if compressor is None:
            return {"seconds": {"compress": 0.0, "decompress": 0.0}, "sent_bytes": 0}
        return compressor.stats()["total"]


def gather(thing: Any) -> list[Any]:
    """From all ranks; Horovod's own asks for two of them."""
    return hvd.allgather_object(thing) if hvd.size() > 1 else [thing]


def main() -> None:
    """Parse, train, and turn what the user can put right into one line."""
    arguments = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_argument("--loop", choices=("fit", "custom"), default="fit")
    mine, others = arguments.parse_known_args()
    chosen, compressor = flags.parse(__doc__.splitlines()[0] + " Also: --loop fit|custom.", others)
    chosen.loop = mine.loop
    if chosen.resume or chosen.stop_after:
        flags.parser("").error("--resume and --stop-after are in train_torch.py only")
    hvd.init()
    try:
        training = Training(chosen, compressor)
        if hvd.rank() == 0:
            training.introduce()
        training.run()
    except fashion_mnist.DataError as error:  # raised on every rank alike
        if hvd.rank() == 0:
            print(f"train_tensorflow: error: {error}", file=sys.stderr, flush=True)
        gather("said")  # mpirun ends all ranks when the first one leaves
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
