"""Scenarios: something else in a traced step raises an error when some of its gradients are on their way."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks.checks import expect, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.arguments import values

LATE = 0.15
"""Seconds by which the gradient that is not a number comes later than the other."""


@tf.custom_gradient
def watched(value: Any) -> Any:
    """The value; an error in the backward pass if its gradient is not a number, which is late then."""

    def late(gradient: np.ndarray) -> np.ndarray:
        if np.isnan(gradient).any():
            time.sleep(LATE)
        return gradient

    def backward(gradient: Any) -> Any:
        gradient = tf.ensure_shape(tf.numpy_function(late, [gradient], tf.float32, stateful=False), value.shape)
        return tf.debugging.check_numerics(gradient, "backward")

    return tf.identity(value), backward


def trained(compression: Any, failing: Collection[int]) -> list[list[np.ndarray]]:
    """The means of the steps on this rank, none of those that are ``failing``; a compressor's state stays what it was
    then."""
    weights = [tf.Variable(tf.zeros((64, 64)), name="late"), tf.Variable(tf.zeros((64, 80)), name="early")]

    @tf.function
    def step(wanted: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(watched(weights[0]) * wanted[0]) + tf.reduce_sum(weights[1] * wanted[1])
        return hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, weights)

    found: list[list[np.ndarray]] = []
    for t in range(6):
        held = memory(compression) if t and isinstance(compression, hvd_compress.Compressor) else {}
        wanted = [values(64, 64, key=t), values(64, 80, key=100 + t)]
        if t in failing:
            expect(
                tf.errors.InvalidArgumentError,
                "backward",
                run=lambda wanted=wanted: step([wanted[0] * np.nan, wanted[1]]),
            )
            assert not held or same(held, memory(compression))
            found.append([])
        else:
            found.append([mean.numpy() for mean in step(wanted)])
    return found


def check_alike(compression: Any, failing: Collection[int]) -> None:
    for left, right in zip(trained(compression, failing), trained(hvd.Compression.none, failing), strict=True):
        for mine, other in zip(left, right, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def errors_in_the_backward_pass_of_all_ranks() -> None:
    """One after the other: each leaves no trace, and training goes on as it does without compression."""
    check_alike(hvd_compress.TopK(1.0, bucket_mb=1e-6), (2, 3))
    compression = hvd_compress.TopK(0.05, bucket_mb=1e-6)
    trained(compression, (3,))
    assert compression.stats()["total"]["skipped_steps"] == 1
    assert compression.state_dict()["steps"] == [6, 6]


@scenario("mpirun 2")
def errors_in_the_backward_pass_of_one_rank() -> None:
    """Its next gradient is averaged with what the others sent in that step, as without compression; until another
    rank has an error in the same place."""
    check_alike(hvd_compress.TopK(1.0, bucket_mb=1e-6), (2,) if hvd.rank() == 0 else (4,))
