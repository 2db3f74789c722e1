"""Scenarios under TensorFlow: what goes over the network, and when."""

from __future__ import annotations

import collections
import dataclasses
import random
import sys
import time
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.drivers import simulation
from hvd_compress.runtime.graph_transport import GraphTransport
from tests.ranks.checks import learns, memory
from tests.ranks.recording import recorded
from tests.ranks.rounds import LeaderFirst, TwoRounds
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import (
    assert_replicas_equal,
    batches,
    gather,
    loss_of,
    network,
    sidco,
    stepping,
    train,
)


def by_bucket(record: list[tuple[int, str, str]], rank: int) -> dict[str, list[str]]:
    """The hashes of what a rank sent, by collective: the order among buckets is the scheduler's affair."""
    found = collections.defaultdict(list)
    for sender, name, digest in record:
        if sender == rank and "round" in name:
            found[name].append(digest)
    return dict(found)


# In every test run PyTorch is compared with the simulation, and TensorFlow with PyTorch.
@scenario(long=["mpirun 2", "mpirun 3"])
def simulation_sends_the_same_bytes() -> None:
    """The gradients of real training, replayed in the simulation: every payload of every rank, byte for byte."""
    cases: list[tuple[hvd_compress.Compressor, dict[str, Any]]] = [
        (hvd_compress.SIDCo(0.05, bucket_mb=1e-6, fit="gamma-pareto"), {}),
        (hvd_compress.SIDCo(0.02, wire="bfloat16", seed=3), {}),
        (hvd_compress.TopK(0.05, wire="float16"), {"num_groups": 2}),
        (hvd_compress.DGC(0.05, bucket_mb=0.05), {}),
        (hvd_compress.Half(bucket_mb=0.05), {}),
        (hvd_compress.TopK(0.05, bucket_mb=0.05, wire="range8"), {}),
        (hvd_compress.FFT(0.1, bucket_mb=0.05), {}),
        (hvd_compress.FFT(0.05, block=None, bits=6, rounding="stochastic", error_feedback=False), {"num_groups": 2}),
        (hvd_compress.QSGDMaxNorm(4, bucket_mb=0.05), {}),
        (hvd_compress.QSGDMaxNormMultiScale((3, 6, 9), norm="l2", seed=2), {"num_groups": 2}),
        (hvd_compress.RandKMaxNorm(0.1, 4, bucket_mb=0.05), {}),
        (hvd_compress.RandKMaxNormMultiScale(0.3, bucket_mb=0.05, error_feedback=False), {}),
        (hvd_compress.SIDCo(0.05, bucket_mb=0.05, aggregate="reduce-scatter", wire="range8"), {}),
    ]
    for compression, keywords in cases:
        model = network()
        kernels = [v for v in model.trainable_variables if len(v.shape) > 1 and v.shape.num_elements() >= 1024]
        names = [v.name.removesuffix(":0") for v in kernels]
        optimizer = tf.keras.optimizers.SGD(0.05)

        @tf.function
        def step(inputs, labels, model=model, kernels=kernels, c=compression, k=keywords, optimizer=optimizer):
            with tf.GradientTape(persistent=True) as tape:
                loss = loss_of(labels, model(inputs, training=True))
            local = tape.gradient(loss, kernels)
            tape = hvd.DistributedGradientTape(tape, compression=c, **k)
            means = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(means, model.trainable_variables, strict=True))
            return local

        gradients = []
        with recorded(GraphTransport) as sent:
            for inputs, labels in batches(10):
                local = step(inputs, labels)
                gradients.append({name: g.numpy().ravel() for name, g in zip(names, local, strict=True)})
        layout = compression.state_dict()["layout"]
        everyone = gather((gradients, by_bucket(sent, hvd.rank())))
        replica = hvd_compress.Simulation(dataclasses.replace(compression, bucket_mb=1e-6), workers=hvd.size())
        with recorded(simulation.SimulatedTransport) as simulated:
            for t in range(10):
                replica.step(
                    {
                        f"bucket{index}": [np.concatenate([g[t][name] for name in members])[None] for g, _ in everyone]
                        for index, members in enumerate(layout)
                    }
                )
        for rank in range(hvd.size()):
            real = everyone[rank][1]
            assert len(real) == len(layout) * len(compression.schedule)
            assert all(len(digests) == 10 for digests in real.values())
            replayed = by_bucket(simulated, rank)
            for name, digests in real.items():
                wrong = [t for t in range(10) if digests[t] != replayed[name][t]]
                assert not wrong, f"steps {wrong} of {name}, rank {rank}, {compression!r}"


@scenario("mpirun 2", long=["mpirun 3"])
def several_rounds() -> None:
    for compression in (TwoRounds(bucket_mb=0.05), LeaderFirst(bucket_mb=0.05)):
        for graph in (True, False):
            model = network()
            learns(train(stepping(model, compression if graph else dataclasses.replace(compression), graph=graph)))
            assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 3"])
def flush_without_a_payload() -> None:
    """The quantizers' first all-reduce carries the request."""
    model = network()
    compression = hvd_compress.RandKMaxNorm(0.2, 4, bucket_mb=0.05)
    step = stepping(model, compression, lr=0.05)
    train(step, steps=4)
    assert any(array.any() for array in memory(compression).values())
    if hvd.rank() == hvd.size() - 1:
        compression.flush()
    train(step, steps=1, first=4)
    assert not any(array.any() for array in memory(compression).values())
    train(step, steps=1, first=5)
    assert any(array.any() for array in memory(compression).values())
    assert_replicas_equal(model)


@scenario(long=["mpirun 2", "mpirun 3"])
def quantizers_learn() -> None:
    for compression in (
        hvd_compress.QSGDMaxNorm(4, bucket_mb=0.05),
        hvd_compress.QSGDMaxNormMultiScale(bucket_mb=0.05),
        hvd_compress.RandKMaxNorm(0.2, bucket_mb=0.05),
    ):
        model = network()
        learns(train(stepping(model, compression, lr=0.1), steps=100))
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 3"])
def not_finite_in_any_round() -> None:
    """A compressor that finds out between its rounds; the collectives that are laid out run all the same."""
    randk = partial(hvd_compress.RandKMaxNormMultiScale, 0.2, bucket_mb=0.03)
    for make in (hvd_compress.QSGDMaxNorm, randk, lambda: sidco(bucket_mb=0.03)):
        model = network()
        compression = make()
        step = stepping(model, compression, lr=0.05)
        train(step, steps=2)
        held = memory(compression)
        weights = model.get_weights()
        inputs, labels = next(batches(1, 2))
        step(inputs * (np.inf if hvd.rank() == hvd.size() - 1 else 1), labels)
        assert np.isnan(model.trainable_variables[0].numpy()).all()
        assert_replicas_equal(model)
        assert {k: v.tobytes() for k, v in memory(compression).items()} == {k: v.tobytes() for k, v in held.items()}
        model.set_weights(weights)
        train(stepping(model, compression, lr=0.05), steps=2, first=3)  # Keras's SGD itself would remember the NaN
        assert_replicas_equal(model)
        wrong = [v.name for v in model.variables if not np.isfinite(v.numpy()).all()]
        assert not wrong, f"{wrong} after {compression!r}"


class Late(tf.keras.layers.Layer):
    """Hands its gradient on after a while, a different one on every rank and in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = random.Random(hvd.rank())

    def nap(self, gradient: np.ndarray) -> np.ndarray:
        time.sleep(self.chance.choice([0, 0, 0, 0.001, 0.003]))
        return gradient

    def call(self, inputs: Any) -> Any:
        @tf.custom_gradient
        def passing(x: Any) -> Any:
            def backward(gradient: Any) -> Any:
                late = tf.numpy_function(self.nap, [gradient], gradient.dtype)
                late.set_shape(gradient.shape)
                return late

            return tf.identity(x), backward

        return passing(inputs)


def parallel() -> Any:
    """Branches whose gradients are ready in any order."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((64,))
    branches = [Late()(tf.keras.layers.Dense(32)(inputs)) for _ in range(6)]
    return tf.keras.Model(inputs, tf.keras.layers.Dense(10)(tf.keras.layers.Add()(branches)))


@scenario(long=["mpirun 2", "mpirun 3"])
def ranks_that_are_late_at_random() -> None:
    """40 steps: gradients are ready at different times and in different orders, on two threads."""
    for compression in (sidco(bucket_mb=1e-6), hvd_compress.QSGDMaxNormMultiScale(bucket_mb=0.01)):
        model = parallel()
        train(stepping(model, compression, lr=0.05), steps=40)
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 3"])
def gradients_are_not_copied() -> None:
    """TensorFlow hands its memory to Python and takes Python's over; and a mean that is kept stays what it was."""
    seen: list[int] = []
    original = GraphTransport.start

    def start(self: GraphTransport, collective: Any, name: str) -> Any:
        seen.append(sys._getframe(3).f_locals["pieces"][0].ctypes.data)
        return original(self, collective, name)

    compression = sidco()
    gradient = tf.constant(np.random.default_rng(0).standard_normal(4096).astype(np.float32).reshape(64, 64))
    address = np.asarray(memoryview(gradient)).ctypes.data
    GraphTransport.start = start
    try:
        reduce = tf.function(lambda x: hvd.allreduce(x, compression=compression))
        means = [reduce(gradient) for _ in range(8)]
    finally:
        GraphTransport.start = original
    assert set(seen) == {address}
    assert len({np.asarray(memoryview(mean)).ctypes.data for mean in means}) == len(means)
    assert len({mean.numpy().tobytes() for mean in means}) == 1
