"""Scenarios under TensorFlow that every launcher runs: 50 steps each, replicas bitwise equal at the end."""

from __future__ import annotations

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks.checks import learns, memory
from tests.ranks.process_sets import process_set
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import (
    STEPS,
    assert_replicas_equal,
    batches,
    digest,
    gather,
    network,
    sidco,
    stepping,
    train,
)

EVERYWHERE = ("mpirun 2", "mpirun 4", "horovodrun 2", "alone 1")


@scenario("mpirun 2", long=EVERYWHERE)
def dense_matches_horovod() -> None:
    digests = []
    for compression in (hvd.Compression.none, hvd_compress.Dense()):
        model = network()
        learns(train(stepping(model, compression)))
        assert_replicas_equal(model)
        digests.append(digest(model))
    if hvd.size() <= 2:  # beyond that the order of a sum depends on how Horovod fused it
        assert digests[0] == digests[1]


@scenario("mpirun 2", long=EVERYWHERE)
def tape_in_a_function_and_eagerly() -> None:
    digests = []
    for graph in (True, False):
        model = network()
        compression = sidco()
        learns(train(stepping(model, compression, graph=graph)))
        assert_replicas_equal(model)
        digests.append(digest(model))
        if hvd.size() > 1:
            assert compression.state_dict()["step"] == STEPS
            assert len(memory(compression)) == 3
            assert compression.stats()["total"]["steps"] == STEPS
    assert digests[0] == digests[1]


@scenario("mpirun 2")
def every_kind_of_compressor() -> None:
    """An all-reduce, sparse payloads, two rounds, a common choice of coordinates; and LGC's scenarios."""
    every_one_of("half", "sidco", "qsgd-maxnorm-multiscale", "randk-maxnorm")


@scenario(long=EVERYWHERE)
def every_compressor() -> None:
    every_one_of(*hvd_compress.compressor_names())


def every_one_of(*names: str) -> None:
    for name in names:
        model = network()
        compression = hvd_compress.from_config({"name": name, "bucket_mb": 0.05})
        train(stepping(model, compression, lr=0.02))
        assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def model_fit() -> None:
    model = network()
    optimizer = hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.3), compression=sidco())
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    model.layers[-1].activation = tf.keras.activations.softmax
    inputs, labels = (np.concatenate(parts) for parts in zip(*batches(STEPS), strict=True))
    history = model.fit(inputs, labels, batch_size=32, shuffle=False, epochs=2, verbose=0)
    assert history.history["loss"][1] < 0.7 * history.history["loss"][0]
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def op_sum() -> None:
    model = network()
    learns(train(stepping(model, sidco(), op=hvd.Sum, lr=0.3 / hvd.size())))
    assert_replicas_equal(model)
    summed, averaged = network(), network()
    train(stepping(summed, sidco(), op=hvd.Sum, lr=0.5), steps=1)
    train(stepping(averaged, sidco(), lr=0.5 * hvd.size()), steps=1)
    for left, right in zip(summed.variables, averaged.variables, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@scenario("mpirun 2", long=EVERYWHERE)
def groups() -> None:
    for keywords in ({"num_groups": 2}, {"groups": 3}):
        model = network()
        compression = sidco()
        learns(train(stepping(model, compression, **keywords)))
        assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def allreduce_alone() -> None:
    """Without an optimizer there is no memory: the same call gives the same result."""
    compression = hvd_compress.TopK(0.25)
    values = tf.constant(np.random.default_rng(hvd.rank()).standard_normal((64, 64)).astype(np.float32))
    eager = [hvd.allreduce(values, compression=compression, name="alone").numpy() for _ in range(2)]
    traced = tf.function(lambda x: hvd.allreduce(x, compression=compression, op=hvd.Sum))
    graph = [traced(values).numpy() for _ in range(2)]
    assert eager[0].tobytes() == eager[1].tobytes()
    assert graph[0].tobytes() == graph[1].tobytes()
    np.testing.assert_allclose(graph[0], eager[0] * hvd.size(), rtol=1e-5)
    assert 0 < np.count_nonzero(eager[0]) < 0.26 * hvd.size() * values.shape.num_elements()


@scenario("mpirun 2", long=EVERYWHERE)
def random_numbers_differ_from_call_to_call() -> None:
    """Eagerly, too, where every call is a graph of its own: random coordinates are others in every call, the same on
    all ranks, and what is rounded at random is right on average."""
    some = hvd_compress.RandKMaxNorm(0.25)
    chosen = [np.flatnonzero(hvd.allreduce(tf.ones((64, 64)), compression=some).numpy()) for _ in range(3)]
    assert len({coordinates.tobytes() for coordinates in chosen}) == 3
    for coordinates in chosen:
        assert len({tuple(other) for other in gather(coordinates)}) == 1
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    rounding = hvd_compress.QSGDMaxNorm(bits=2)
    means = [hvd.allreduce(tf.constant(values), compression=rounding).numpy() for _ in range(16)]
    first, average = (np.sqrt(np.mean((mean - values) ** 2)) for mean in (means[0], np.mean(means, axis=0)))
    assert average < 0.4 * first  # 1 / sqrt(16) of it


@scenario(long=["mpirun 3", "mpirun 4"])
def process_sets() -> None:
    last = [hvd.size() - 2, hvd.size() - 1]
    some = process_set(*last)
    model = network()
    train(stepping(model, sidco(), process_set=some), steps=20)
    assert_replicas_equal(model, among=last)
    assert len(set(gather(digest(model)))) == 1 + hvd.size() - len(last)
