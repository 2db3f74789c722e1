"""Scenarios shaped like Horovod's own TensorFlow examples, with nothing but ``compression=`` added."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.drivers.keras import RecorderCallback
from tests.ranks.checks import learns
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import assert_replicas_equal, gather


def network() -> Any:
    """Convolutions and dropout; no two ranks begin alike."""
    tf.keras.utils.set_random_seed(hvd.rank())
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def dataset(batch: int = 32) -> Any:
    """Pictures of bars: where the bar is, is the class; repeated, shuffled, in batches."""
    rng = np.random.default_rng(hvd.rank())
    labels = rng.integers(0, 10, 1024)
    images = rng.random((1024, 14, 14, 1), np.float32)
    images[np.arange(1024), :, labels] += 1
    return tf.data.Dataset.from_tensor_slices((images, labels)).repeat().shuffle(1024, seed=hvd.rank()).batch(batch)


@scenario("mpirun 2", long=["horovodrun 2"])
def a_loop_with_the_tape() -> None:
    """The model is built, and all is broadcast, in the first step; the compressor is made where it is used."""
    for outside in (True, False):
        model = network()
        loss_of = tf.losses.SparseCategoricalCrossentropy()
        optimizer = tf.optimizers.Adam(0.001 * hvd.size())
        compression = hvd_compress.SIDCo(0.05)

        @tf.function
        def step(images, labels, first, model=model, loss_of=loss_of, optimizer=optimizer, c=compression, o=outside):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True))
            tape = hvd.DistributedGradientTape(tape, compression=c if o else hvd_compress.SIDCo(0.05))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            if first:
                hvd.broadcast_variables(model.variables, root_rank=0)
                hvd.broadcast_variables(optimizer.variables(), root_rank=0)
            return loss

        losses = [float(step(x, y, t == 0)) for t, (x, y) in enumerate(dataset().take(60))]
        learns(losses)
        assert_replicas_equal(model)
        assert set(gather(len(optimizer.variables()))) == {len(optimizer.variables())}


@scenario("mpirun 2", long=["horovodrun 2"])
def fit_with_callbacks() -> None:
    model = network()
    rate = 0.001 * hvd.size()
    compression = hvd_compress.SIDCo(0.05)
    optimizer = hvd_keras.DistributedOptimizer(
        tf.optimizers.Adam(rate),
        compression=compression,
        backward_passes_per_step=1,
        average_aggregated_gradients=True,
    )
    model.compile(loss=tf.losses.SparseCategoricalCrossentropy(), optimizer=optimizer, metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [
            hvd_keras.callbacks.BroadcastGlobalVariablesCallback(0),
            hvd_keras.callbacks.MetricAverageCallback(),
            hvd_keras.callbacks.LearningRateWarmupCallback(initial_lr=rate, warmup_epochs=2, verbose=0),
        ]
        for callback in callbacks:  # Horovod 0.28.1 asks for that of the package "keras", which is Keras 3 by now
            callback.backend = tf.keras.backend
        if hvd.rank() == 0:
            callbacks.append(tf.keras.callbacks.ModelCheckpoint(f"{folder}/checkpoint-{{epoch}}.h5"))
        file = Path(folder) / "run.json"
        recorder = hvd_compress.Recorder(compression, file, rank=hvd.rank(), ranks=hvd.size())
        callbacks.append(RecorderCallback(recorder, accuracy="accuracy"))
        history = model.fit(dataset(), steps_per_epoch=20, epochs=3, callbacks=callbacks, verbose=0).history
        assert file.exists() is (hvd.rank() == 0)
        if hvd.rank() == 0:
            record = json.loads(file.read_text())
            assert record["complete"]
            assert [epoch["test_accuracy"] for epoch in record["epochs"]] == history["accuracy"]
            sent, total = record["steps"]["sent_bytes"], compression.stats()["total"]
            assert (len(sent), sum(sent)) == (60, total["sent_bytes"])
    assert history["loss"][-1] < 0.7 * history["loss"][0], history
    assert set(gather(history["loss"][-1])) == {history["loss"][-1]}
    assert_replicas_equal(model)
