"""Scenarios under TensorFlow: DGC's momentum, beside the momentum of Keras's optimizer under plain Horovod."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.state_format import seal
from tests.ranks.checks import expect, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.arguments import values
from tests.ranks.tensorflow.training import (
    assert_replicas_equal,
    batches,
    digest,
    gather,
    loss_of,
    network,
    stepping,
    train,
)


def _oracle(nesterov: bool, decay: float, **keywords: Any) -> Any:
    """Train with plain Horovod; decay goes through the optimizer's momentum, as PyTorch's does."""
    model = network()
    optimizer = tf.keras.optimizers.SGD(0.05, momentum=0.9, nesterov=nesterov)
    for inputs, labels in batches(4):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        variables = model.trainable_variables
        gradients = hvd.DistributedGradientTape(tape, **keywords).gradient(loss, variables)
        decayed = [gradient + decay * variable for gradient, variable in zip(gradients, variables, strict=True)]
        optimizer.apply_gradients(zip(decayed, variables, strict=True))
    return model


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def everything_sent_is_momentum_sgd() -> None:
    """Of weights, of biases, and of a matrix that is too small to be compressed; with sums and factors."""
    cases = [
        (False, 0.0, {}, False),
        (False, 0.1, {"op": hvd.Sum}, True),
        (True, 0.1, {"gradient_predivide_factor": 2.0}, True),
    ]
    for nesterov, decay, keywords, graph in cases:
        model = network()
        compression = hvd_compress.DGC(1.0, nesterov=nesterov, weight_decay=decay, bucket_mb=0.05)
        train(stepping(model, compression, lr=0.05, graph=graph, **keywords), 4)
        for left, right in zip(model.variables, _oracle(nesterov, decay, **keywords).variables, strict=True):
            np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=1e-3, atol=2e-6)
        assert_replicas_equal(model)
        assert compression.stats()["total"]["steps"] == 4


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def momentum_is_in_checkpoints_and_flushed() -> None:
    model = network()
    compression = hvd_compress.DGC(0.05, weight_decay=0.1, bucket_mb=0.05)
    step = stepping(model, compression, lr=0.05)
    train(step, 4)
    if hvd.rank() == 0:
        compression.flush()
    train(step, 1, first=4)
    state = hvd.broadcast_object(compression.state_dict(), 0)
    held = {key for name, arrays in state["memory"].items() for key in arrays if name.endswith("bias")}
    assert held == {"mean_momentum"}
    kernels = [arrays for arrays in state["memory"].values() if "velocity" in arrays]
    assert all(arrays["momentum"].any() and not arrays["velocity"].any() for arrays in kernels)
    twin = network()
    twin.set_weights(model.get_weights())
    again = hvd_compress.DGC(0.05, weight_decay=0.1, bucket_mb=0.05)
    again.load_state_dict(_renamed(state, model, twin))
    train(step, 3, first=5)
    train(stepping(twin, again, lr=0.05), 3, first=5)
    assert digest(twin) == digest(model)
    assert_replicas_equal(twin)


def _renamed(state: dict[str, Any], model: Any, twin: Any) -> dict[str, Any]:
    """The state with the twin's names for its variables."""
    names = {a.name.removesuffix(":0"): b.name.removesuffix(":0") for a, b in _pairs(model, twin)}
    memory = {names[name]: arrays for name, arrays in state["memory"].items()}
    layout = [[names[name] for name in names_] for names_ in state["layout"]]
    return seal({**state, "memory": memory, "layout": layout})


def _pairs(model: Any, twin: Any) -> Any:
    return zip(model.trainable_variables, twin.trainable_variables, strict=True)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def steps_that_leave_no_momentum() -> None:
    """One that is not finite and one that is discarded leave all momenta as they were."""
    model = network()
    compression = hvd_compress.DGC(0.05, weight_decay=0.1, bucket_mb=0.05)
    variables = model.trainable_variables

    @tf.function
    def gradients(inputs: Any, labels: Any, factor: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = factor * loss_of(labels, model(inputs, training=True))
        return hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, variables)

    ((inputs, labels),) = batches(1)
    for factor in (1.0, 1.0):
        gradients(inputs, labels, tf.constant(factor))
    before = memory(compression)
    assert sum("mean_momentum" in name for name in before) == len(variables)
    gradients(inputs, labels, tf.constant(float("nan") if hvd.rank() == 0 else 1.0))
    assert same(memory(compression), before)
    compression.discard()
    gradients(inputs, labels, tf.constant(1.0))
    assert same(memory(compression), before)
    gradients(inputs, labels, tf.constant(1.0))
    assert not same(memory(compression), before)


@scenario("mpirun 2")
def a_loss_scale_that_nobody_tells_of_is_refused() -> None:
    """Where the compressor would have to know it: to clip, to decay weights, or for ``use_grad_scaler``."""
    scaler = SimpleNamespace(get_scale=lambda: 8.0)
    variable = tf.Variable(tf.ones((64, 64)))

    def minimize(compression: Any, *, traced: bool) -> None:
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(
            hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=compression), initial_scale=8.0
        )
        optimizer.build([variable])

        def step() -> None:
            optimizer.minimize(lambda: tf.reduce_sum(variable**2), [variable])

        (tf.function(step) if traced else step)()

    for traced in (False, True):
        for name, value in (("clip", 1.0), ("weight_decay", 0.1)):
            run = partial(minimize, hvd_compress.DGC(0.05, **{name: value}), traced=traced)
            expect(ValueError, "LossScaleOptimizer", f"leave out {name},", run=run)
    fine = hvd_compress.DGC(0.05)
    minimize(fine, traced=True)
    expect(ValueError, "loss scale", run=lambda: fine.use_grad_scaler(scaler))
    compression = hvd_compress.TopK(0.05)
    compression.use_grad_scaler(scaler)
    expect(ValueError, "loss scale", run=lambda: hvd.allreduce(variable, compression=compression))


@scenario("mpirun 2")
def two_calls_in_one_function() -> None:
    """Each has the momentum that the one before it leaves, also of what Horovod reduces itself; and if that is all."""
    for large in ([(64, 64)], []):
        compression = hvd_compress.DGC(1.0, momentum=0.9)
        weights = [tf.Variable(tf.zeros(shape)) for shape in (*large, (500,), (500,), (500,))]

        @tf.function
        def step(wanted: list[list[Any]], compression: Any = compression, weights: Any = weights) -> list[Any]:
            found = []
            for gradients in wanted:
                with tf.GradientTape() as tape:
                    loss = tf.add_n([tf.reduce_sum(v * g) for v, g in zip(weights, gradients, strict=True)])
                found += hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, weights)
            return found

        momenta = [np.zeros(weight.shape) for weight in weights]
        for t in range(3):
            wanted = [[values(*w.shape, key=100 * t + 10 * k + n) for n, w in enumerate(weights)] for k in range(2)]
            results = iter(step(wanted))
            for gradients in wanted:
                for place, gradient in enumerate(gradients):
                    momenta[place] = 0.9 * momenta[place] + np.mean(gather(gradient.numpy()), 0)
                    np.testing.assert_allclose(next(results), momenta[place], rtol=1e-4, atol=1e-5)
        assert compression.stats()["total"]["skipped_steps"] == 0
