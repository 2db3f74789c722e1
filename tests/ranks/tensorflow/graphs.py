"""Scenarios: several models and functions, in one graph and in any order of tracing, as Horovod has them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.arguments import values
from tests.ranks.tensorflow.exact import reducing


def check_as_horovod(run: Callable[[Callable[[], Any]], list[np.ndarray]]) -> None:
    """``run`` has the same results with compressors that it makes as without compression."""
    for left, right in zip(run(lambda: hvd_compress.TopK(1.0)), run(lambda: hvd.Compression.none), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def another_order_of_tracing() -> None:
    """Each rank traces another of two models' steps first; both are trained in the same order. Their variables have the
    same names and shapes, as Horovod's own collectives have the same names."""

    def run(make: Callable[[], Any]) -> list[np.ndarray]:
        models = [tf.Variable(tf.zeros((64, 64)), name="kernel") for _ in range(2)]
        functions = [reducing(make(), [model]) for model in models]
        functions[hvd.rank() % 2].get_concrete_function([tf.TensorSpec((64, 64))])
        results = [function([values(64, 64, key=2 * t + k)]) for t in range(2) for k, function in enumerate(functions)]
        return [mean.numpy() for [mean] in results]

    check_as_horovod(run)


@scenario("mpirun 2")
def two_models_in_one_function() -> None:
    """As a generator and a discriminator are: each has a compressor, and the same variables' names and shapes."""

    def run(make: Callable[[], Any]) -> list[np.ndarray]:
        models = [tf.Variable(tf.zeros((64, 64)), name="kernel") for _ in range(4)]
        compressors = [make() for _ in models]

        @tf.function
        def step(wanted: list[Any]) -> list[Any]:
            found = []
            for model, compression, gradient in zip(models, compressors, wanted, strict=True):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(model * gradient)
                found += hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, [model])
            return found

        return [m.numpy() for t in range(2) for m in step([values(64, 64, key=10 * t + k) for k in range(len(models))])]

    check_as_horovod(run)


@scenario("mpirun 2")
def functions_of_models_in_one_function() -> None:
    """Each model's step is a function, which another calls twice; TensorFlow would run those side by side that only
    read variables. The compressors are one for each model, or one for all."""

    def run(make: Callable[[], Any]) -> list[np.ndarray]:
        models = [tf.Variable(tf.zeros((64, 64)), name="kernel") for _ in range(3)]
        shared = make()
        functions = [reducing(make(), [model]) for model in models] + [reducing(shared, [model]) for model in models]
        step = tf.function(lambda x: [f([k * x])[0] for k in (1.0, 2.0) for f in functions])
        return [mean.numpy() for t in range(2) for mean in step(values(64, 64, key=t))]

    check_as_horovod(run)


@scenario("mpirun 2")
def functions_beside_calls_of_their_own() -> None:
    """A function reduces the gradients of one model, and calls functions, branches and loops that do so for others, of
    the same names and shapes. Horovod alone cannot: their collectives have the same names at the same time. The
    compressors are one for each model, or one for all."""
    for shared in (None, hvd_compress.TopK(1.0)):
        models = [tf.Variable(tf.zeros((64, 64)), name="kernel") for _ in range(4)]
        own, function, branch, body = (reducing(shared or hvd_compress.TopK(1.0), [model]) for model in models)

        @tf.function
        def outer(x: Any, own: Any = own, function: Any = function) -> list[Any]:
            return [*function([x]), *own.python_function([2 * x]), *function([3 * x])]

        @tf.function
        def step(x: Any, outer: Any = outer, inner: Any = (own, branch, body)) -> list[Any]:
            own, branch, body = inner
            found = [*outer(x), *own.python_function([4 * x])]
            found += tf.cond(tf.size(x) > 0, lambda: branch.python_function([5 * x]), lambda: [x])
            found += own.python_function([6 * x])
            each = tf.TensorArray(tf.float32, 8)
            for i in tf.range(8):
                each = each.write(i, body.python_function([tf.cast(i + 7, tf.float32) * x])[0])
            return [*found, *tf.unstack(each.stack()), *own.python_function([15 * x]), *outer(16 * x)]

        for t in range(3):
            mean = hvd.allreduce(values(64, 64, key=t)).numpy()
            factors = [*range(1, 16), 16, 32, 48]
            for factor, got in zip(factors, step(values(64, 64, key=t)), strict=True):
                np.testing.assert_allclose(got.numpy(), factor * mean, rtol=1e-4, atol=1e-4)


@scenario("mpirun 2")
def a_function_that_is_saved() -> None:
    """What reduces gradients may be in a SavedModel, as with Horovod alone, and goes on as before."""

    def run(make: Callable[[], Any]) -> list[np.ndarray]:
        module = tf.Module()
        module.kernel = tf.Variable(tf.zeros((64, 64)), name="kernel")
        module.step = reducing(make(), [module.kernel])
        before = module.step([values(64, 64)])
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(module, folder)
            assert (Path(folder) / "saved_model.pb").exists()
        return [mean.numpy() for mean in [*before, *module.step([values(64, 64, key=1)])]]

    check_as_horovod(run)
