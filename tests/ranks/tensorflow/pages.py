"""Run the Python blocks of pages about TensorFlow, on every rank."""

from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks import pages


def granted() -> dict[str, Any]:
    """A model, data, and what a loop of one's own has."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential([tf.keras.layers.Dense(32, input_shape=(64,)), tf.keras.layers.Dense(10)])
    tf.keras.utils.set_random_seed(1 + hvd.rank())
    images, labels = tf.random.normal((64, 64)), tf.constant(np.arange(64) % 10)
    return {
        "hvd": hvd,
        "tf": tf,
        "hvd_compress": hvd_compress,
        "model": model,
        "images": images,
        "labels": labels,
        "loss_of": tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "optimizer": tf.keras.optimizers.SGD(0.1),
        "compression": hvd_compress.SIDCo(0.01),
        "resumed_from": 0,
    }


def step(names: dict[str, Any]) -> None:
    """If the page has one, it is taken; in any case the replicas must be the same."""
    if "step" in names:
        names["step"](names["images"], names["labels"])
    weights = [variable.numpy() for variable in names["model"].variables]
    for own, first in zip(weights, hvd.broadcast_object(weights, 0), strict=True):
        assert np.array_equal(own, first)


def run_blocks(folder: str) -> None:
    """Run those of ``FOLDER/blocks.json``."""
    pages.run(Path(folder), hvd.rank(), granted, step)
