"""Scenarios under TensorFlow: Horovod is shut down and initialized again, without ``hvd.elastic``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import tensorflow as tf

import hvd_compress
from tests.ranks.checks import memory
from tests.ranks.restarting import restart
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import assert_replicas_equal, batches, digest, loss_of, network, stepping


def under_keras(model: Any, compression: Any) -> Callable[[Any, Any], Any]:
    """Return a training step by Keras' own loop."""
    optimizer = hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.3), compression=compression)
    model.compile(optimizer=optimizer, loss=loss_of)
    return lambda inputs, labels: model.fit(inputs, labels, batch_size=len(labels), shuffle=False, verbose=0)


def beside_one_that_goes_on(stepping_of: Callable[[Any, Any], Any], **configuration: Any) -> None:
    """Train without a restart and with one in the middle: all bits are alike."""
    found = []
    for restarts in (False, True):
        model, compression = network(), hvd_compress.from_config({"bucket_mb": 0.05, **configuration})
        step = stepping_of(model, compression)
        for number, (inputs, labels) in enumerate(batches(6)):
            if restarts and number == 3:
                restart(hvd)
            step(inputs, labels)
        assert_replicas_equal(model)
        assert compression.state_dict()["step"] == 6
        found.append((digest(model), [array.tobytes() for array in memory(compression).values()]))  # names count on
    assert found[0] == found[1]


@scenario(long=["gloo 2"])
def initialized_again() -> None:
    for name in ("sidco", "dense", "randk-maxnorm", "fft"):
        beside_one_that_goes_on(stepping, name=name)


@scenario(long=["gloo 2"])
def initialized_again_under_keras() -> None:
    beside_one_that_goes_on(under_keras, name="sidco")
