"""Under Keras 3, Horovod's Keras optimizer reduces nothing: said at once. Its tape works, with compression too."""

from __future__ import annotations

import sys
from pathlib import Path

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import pytest
import tensorflow as tf

import hvd_compress


def training(compression: object) -> list[np.ndarray]:
    """Train a Keras 3 model for some steps with the tape, and return its weights.

    Horovod takes TensorFlow's variables, which are the ``value`` of Keras 3's.
    """
    tf.keras.utils.set_random_seed(hvd.rank())
    model = tf.keras.Sequential([tf.keras.Input((64,)), tf.keras.layers.Dense(64, "relu"), tf.keras.layers.Dense(64)])
    hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)
    optimizer = tf.keras.optimizers.SGD(0.05)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(inputs: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(inputs, training=True) - inputs) ** 2)
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    losses = [float(step(tf.random.stateless_normal((32, 64), (t, hvd.rank())))) for t in range(30)]
    assert losses[-1] < losses[0]
    return [variable.numpy() for variable in model.trainable_variables]


def main() -> None:
    hvd.init()
    assert tf.keras.__version__.startswith("3"), tf.keras.__version__
    with pytest.raises(RuntimeError) as caught:
        hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=hvd_compress.SIDCo())
    assert "TF_USE_LEGACY_KERAS=1" in str(caught.value)

    plain, whole = training(hvd.Compression.none), training(hvd_compress.TopK(1.0))
    for left, right in zip(plain, whole, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    compression = hvd_compress.SIDCo(0.05)
    weights = training(compression)
    assert len(set(hvd.allgather_object(b"".join(array.tobytes() for array in weights)))) == 1
    assert compression.state_dict()["step"] == 30
    assert len(compression.state_dict()["memory"]) == 2
    if hvd.rank() == 0:
        Path(sys.argv[1]).write_text("fine")


if __name__ == "__main__":
    main()
