"""Scenarios: what distributed tapes and optimizers are asked for after they are made, as Horovod does it."""

from __future__ import annotations

import inspect
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.arguments import LOSSLESS, dense, values


def made() -> list[Any]:
    return [tf.Variable(tf.fill((64, width), 0.5), name=f"kernel{width}") for width in (64, 32)]


def taking(compression: Any, function: Any, *, persistent: bool = False) -> list[np.ndarray]:
    """What ``function(tape, loss, weights)`` returns in two steps of a traced function."""
    weights = made()

    @tf.function
    def step(inputs: Any) -> Any:
        with tf.GradientTape(persistent=persistent) as tape:
            loss = tf.tanh(inputs @ weights[0]) @ weights[1]
        return function(hvd.DistributedGradientTape(tape, compression=compression), loss, weights)

    return [array for t in range(2) for array in dense(step(values(8, 64, key=t)))]


def generic(tape: Any, loss: Any, weights: list[Any]) -> list[Any]:
    with tf.name_scope(f"rank{hvd.rank()}"):
        return tape.gradient(loss, weights, output_gradients=2.0 * tf.ones_like(loss), use_generic_names=True)


def twice(tape: Any, loss: Any, weights: list[Any]) -> list[Any]:
    found = tape.gradient(loss, weights, use_generic_names=True)
    with tf.control_dependencies(found):
        return [*found, *tape.gradient(loss, weights[1:], use_generic_names=True)]


def local(tape: Any, loss: Any, weights: list[Any]) -> list[Any]:
    tape.register_local_source(weights[0])
    pairs = tape.get_local_and_global_gradients(loss, weights, use_generic_names=True)
    return [gradient for found in pairs for _, gradient in found]


def trained(optimizer: Any) -> list[np.ndarray]:
    """The weights after two steps with a Keras optimizer for which the first of them are local."""
    weights = made()
    optimizer.register_local_var(weights[0])

    @tf.function
    def step(inputs: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.tanh(inputs @ weights[0]) @ weights[1])
        optimizer.minimize(loss, weights, tape=tape)

    optimizer.build(weights)
    for t in range(2):
        step(values(8, 64, key=t))
    return dense(weights)


def check(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for mine, other in zip(left, right, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def methods_of_tapes() -> None:
    """Every argument of ``gradient``; the ranks' operations have different names."""
    taken = set(inspect.signature(hvd._DistributedGradientTape.gradient).parameters)
    assert taken == {"self", "target", "sources", "output_gradients", "use_generic_names"}
    for number, (function, keywords) in enumerate(((generic, {}), (twice, {"persistent": True}), (local, {}))):
        expected = taking(hvd.Compression.none, function, **keywords)
        check(taking(LOSSLESS[number % 2](), function, **keywords), expected)


@scenario("mpirun 2")
def local_variables_of_keras_optimizers() -> None:
    def run(compression: Any) -> list[np.ndarray]:
        return trained(hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.01), compression=compression))

    check(run(LOSSLESS[1]()), run(hvd.Compression.none))
