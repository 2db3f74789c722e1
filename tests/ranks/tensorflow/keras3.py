"""Under Keras 3, Horovod's Keras optimizer reduces nothing: said at once. Its tape works, with compression too."""

from __future__ import annotations

import sys
from pathlib import Path

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import pytest
import tensorflow as tf

import hvd_compress


def main() -> None:
    hvd.init()
    assert tf.keras.__version__.startswith("3"), tf.keras.__version__
    with pytest.raises(RuntimeError) as caught:
        hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=hvd_compress.SIDCo())
    assert "TF_USE_LEGACY_KERAS=1" in str(caught.value)

    variable = tf.Variable(tf.random.stateless_normal((64, 64), (0, hvd.rank())))
    compression = hvd_compress.SIDCo(0.05)

    @tf.function
    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable**2)
        return hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, [variable])[0]

    for _ in range(3):
        mean = gradient().numpy()
    assert len(set(hvd.allgather_object(mean.tobytes()))) == 1
    if hvd.rank() == 0:
        Path(sys.argv[1]).write_text("fine")


if __name__ == "__main__":
    main()
