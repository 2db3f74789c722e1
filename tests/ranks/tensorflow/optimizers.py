"""Scenarios under TensorFlow: the other ways of using Horovod, replicas bitwise equal at the end."""

from __future__ import annotations

import functools
import resource
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.drivers.keras import CompressionCheckpoint, load_state, save_state
from tests.ranks.checks import expect, learns, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import (
    STEPS,
    assert_replicas_equal,
    batches,
    digest,
    gather,
    loss_of,
    network,
    sidco,
    stepping,
    train,
)


@scenario("mpirun 2")
def keras_optimizer_in_a_custom_loop() -> None:
    model = network()
    optimizer = hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.3), compression=sidco())

    @tf.function
    def step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        optimizer.minimize(loss, model.trainable_variables, tape=tape)
        return loss

    learns(train(step))
    assert_replicas_equal(model)


@scenario("mpirun 2")
def tensorflow_1_optimizer() -> None:
    model = network()
    plain = tf.compat.v1.train.GradientDescentOptimizer(0.3)
    optimizer = hvd.DistributedOptimizer(plain, compression=sidco())

    @tf.function
    def step(inputs: Any, labels: Any) -> Any:
        losses = []

        def loss() -> Any:
            losses.append(loss_of(labels, model(inputs, training=True)))
            return losses[-1]

        optimizer.apply_gradients(optimizer.compute_gradients(loss, model.trainable_variables))
        return losses[0]

    learns(train(step))
    assert_replicas_equal(model)


@scenario("mpirun 2")
def groups_of_variables() -> None:
    """A group is one bucket, whatever ``bucket_mb`` says."""
    model = network()
    kernels = [v for v in model.trainable_variables if len(v.shape) == 2]
    compression = sidco(bucket_mb=0.001)
    step = stepping(model, compression, groups=[[kernels[0], kernels[2]], [kernels[1]]])
    learns(train(step))
    assert_replicas_equal(model)
    layout = compression.state_dict()["layout"]
    names = [v.name.removesuffix(":0") for v in kernels]
    assert layout == [[names[0], names[2]], [names[1]]], layout


@scenario("mpirun 2")
def backward_passes_per_step() -> None:
    """In tf.function, eagerly, and under model.fit: what Horovod itself would do, and compressed."""

    def loop(model: Any, optimizer: Any, graph: bool) -> None:
        def step(inputs: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(inputs, training=True))
            optimizer.minimize(loss, model.trainable_variables, tape=tape)
            return loss

        learns(train(tf.function(step) if graph else step))

    def fit(model: Any, optimizer: Any, graph: bool) -> None:
        model.compile(optimizer, loss=loss_of)
        inputs, labels = (np.concatenate(parts) for parts in zip(*batches(STEPS), strict=True))
        model.fit(inputs, labels, batch_size=32, shuffle=False, verbose=0)

    digests: dict[str, set[str]] = {}
    for run, graph in ((loop, True), (loop, False), (fit, True)):
        for compression in (hvd.Compression.none, hvd_compress.Dense(), sidco()):
            model = network()
            keywords = {"compression": compression, "backward_passes_per_step": 2}
            run(model, hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.3), **keywords), graph)
            assert_replicas_equal(model)
            if isinstance(compression, hvd_compress.Compressor):
                assert compression.state_dict()["step"] == STEPS // 2
            kind = run.__name__ + ("sidco" if isinstance(compression, hvd_compress.SIDCo) else "whole")
            digests.setdefault(kind, set()).add(digest(model))
    assert hvd.size() > 2 or all(len(found) == 1 for found in digests.values()), digests


@scenario("mpirun 2")
def retracing() -> None:
    """A second and a third batch size: the same memory goes on, neither lost nor doubled."""
    digests = []
    for function in (True, False):
        model = network()
        compression = sidco()
        step = stepping(model, compression)
        if not function:  # traced anew for every step
            step = step.python_function
        for t in range(6):
            size = (32, 32, 16)[t % 3]
            for inputs, labels in batches(1, t, size):
                (step if function else tf.function(step))(inputs, labels)
        state = compression.state_dict()
        assert state["step"] == 6
        assert sorted(map(len, state["layout"])) == [1, 1, 1]
        assert_replicas_equal(model)
        digests.append(digest(model))
    assert digests[0] == digests[1]


@scenario("mpirun 2")
def two_models_and_two_functions() -> None:
    """One compressor each; and one for two models of the same shapes, whose variables tell them apart."""
    first, second = network(0), network(1)
    steps = [stepping(model, hvd_compress.TopK(0.05)) for model in (first, second)]
    for inputs, labels in batches(20):
        for step in steps:
            step(inputs, labels)
    expected = digest(first), digest(second)
    first, second = network(0), network(1)
    shared = hvd_compress.TopK(0.05)
    steps = [stepping(model, shared) for model in (first, second)]
    for inputs, labels in batches(20):
        for step in steps:
            step(inputs, labels)
    assert_replicas_equal(first)
    assert_replicas_equal(second)
    assert (digest(first), digest(second)) == expected
    assert len(memory(shared)) == 6
    assert shared.state_dict()["step"] == 20


@scenario("mpirun 2")
def one_model_in_two_functions() -> None:
    digests = []
    for split in (False, True):
        model = network()
        compression = sidco()
        steps = [stepping(model, compression) for _ in range(2)]
        for t, (inputs, labels) in enumerate(batches(20)):
            steps[t % 2 if split else 0](inputs, labels)
        assert_replicas_equal(model)
        assert len(memory(compression)) == 3
        digests.append(digest(model))
    assert digests[0] == digests[1]


def embedding(vocabulary: int = 200) -> Any:
    tf.keras.utils.set_random_seed(0)
    layers = [tf.keras.layers.Embedding(vocabulary, 16), tf.keras.layers.Flatten(), tf.keras.layers.Dense(10)]
    return tf.keras.Sequential([tf.keras.Input((8,), dtype=tf.int32), *layers])


@scenario("mpirun 2")
def embeddings() -> None:
    """IndexedSlices are Horovod's own business, or dense and compressed."""
    for sparse_as_dense in (False, True):
        model = embedding()
        compression = sidco()
        step = stepping(model, compression, sparse_as_dense=sparse_as_dense)
        losses = []
        for t in range(STEPS):
            words = np.random.default_rng(1000 * t + hvd.rank()).integers(0, 200, (32, 8))
            losses.append(float(step(tf.constant(words, tf.int32), tf.constant(words[:, 0] % 10))))
        assert losses[-1] < losses[0]
        assert_replicas_equal(model)
        names = " ".join(memory(compression))
        assert ("embedding" in names) == sparse_as_dense, names


@scenario("mpirun 2")
def mixed_precision() -> None:
    """A step that is not finite on one rank, in a compressed or in an uncompressed gradient, is none on any rank."""
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = network()
        compression = sidco()
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD(0.3), initial_scale=128.0)
        wrong = [next(v for v in model.trainable_variables if where in v.name) for where in ("kernel", "bias")]

        @tf.function
        def step(inputs, labels, poison):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(inputs, training=True))
                loss += tf.add_n([poison[i] * tf.reshape(weight, [-1])[0] for i, weight in enumerate(wrong)])
                scaled = optimizer.get_scaled_loss(loss)
            variables = model.trainable_variables
            tape = hvd.DistributedGradientTape(tape, compression=compression)
            gradients = optimizer.get_unscaled_gradients(tape.gradient(scaled, variables))
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss

        poisons = {7: (np.inf, 0.0), 8: (np.inf, 0.0), 13: (0.0, np.inf), 14: (0.0, np.inf)}
        losses = []
        for t, (inputs, labels) in enumerate(batches(26)):
            poison = poisons.get(t, (0.0, 0.0)) if hvd.rank() == hvd.size() - 1 else (0.0, 0.0)
            before, held = digest(model), memory(compression)
            losses.append(float(step(inputs, labels, tf.constant(poison, tf.float32))))
            if t in poisons:
                assert digest(model) == before, t
                assert same(held, memory(compression)), t
        assert compression.stats()["total"]["skipped_steps"] == len(poisons)
        assert float(optimizer.loss_scale) == 8.0
        learns(losses)
        assert_replicas_equal(model)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


@scenario("mpirun 2")
def loss_scale_under_fit() -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = network()
        distributed = hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.3), compression=sidco())
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(distributed, initial_scale=2.0**30)
        model.compile(optimizer, loss=loss_of)
        inputs, labels = (np.concatenate(parts) for parts in zip(*batches(STEPS), strict=True))
        history = model.fit(inputs, labels, batch_size=32, shuffle=False, epochs=2, verbose=0)
        assert history.history["loss"][1] < 0.8 * history.history["loss"][0]
        assert_replicas_equal(model)
        scales = gather(float(optimizer.loss_scale))
        assert set(scales) == {scales[0]}
        assert scales[0] < 2.0**30  # some steps were skipped, on all ranks the same
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


@scenario("mpirun 2")
def state_goes_on() -> None:
    """Saved after 10 steps and restored, training is what it would have been, bit for bit."""
    for make in (sidco, lambda: hvd_compress.DGC(0.05, bucket_mb=0.05)):
        whole, compression = network(), make()
        step = stepping(whole, compression, lr=0.05)
        train(step, steps=10)
        weights = whole.get_weights()
        with tempfile.TemporaryDirectory() as folder:
            save_state(compression, Path(folder) / f"rank{hvd.rank()}.npz")
            train(step, steps=10, first=10)
            half, restored = whole, make()
            names = [v.name for v in whole.trainable_variables]
            after = digest(whole)
            half.set_weights(weights)
            load_state(restored, Path(folder) / f"rank{hvd.rank()}.npz")
        train(stepping(half, restored, lr=0.05), steps=10, first=10)
        assert digest(half) == after
        assert_replicas_equal(half)
        assert [v.name for v in half.trainable_variables] == names
        assert restored.state_dict()["step"] == 20


@scenario("mpirun 2")
def files_that_are_no_state() -> None:
    """Whatever is wrong with one rank's file: both raise an error in the first step, and it names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path, good = Path(folder) / "state.npz", Path(folder) / "good.npz"
        save_state(sidco(), good)
        whole = good.read_bytes()
        np.savez(path, other=np.zeros(3))
        other = path.read_bytes()
        np.savez(path, state=np.array('{"compressor": "sidco", "memory": {}}'))
        contents = (b"", b"text", whole[: len(whole) // 2], whole[:-30], other, path.read_bytes(), None)
        for content in contents:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            compression = sidco()
            load_state(compression, path if hvd.rank() == 1 else good)
            step, place = stepping(network(), compression), gather(str(path))[1]
            expect(tf.errors.OpError, f"rank 1: {place}", run=lambda step=step: train(step, steps=1))
            path.touch()


@scenario("mpirun 2")
def a_full_disk_keeps_the_last_good_state() -> None:
    compression = sidco()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.npz"
        save_state(compression, path)
        good = path.read_bytes()
        train(stepping(network(), compression), steps=2)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing more is an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            expect(OSError, "too large", run=lambda: save_state(compression, path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert path.read_bytes() == good
        assert [file.name for file in Path(folder).iterdir()] == ["state.npz"]
        save_state(compression, path)
        load_state(sidco(), path)
        assert len(path.read_bytes()) > 5000


@scenario("mpirun 2")
def keras_checkpoints() -> None:
    folder = gather(tempfile.mkdtemp() if hvd.rank() == 0 else None)[0]
    inputs, labels = (np.concatenate(parts) for parts in zip(*batches(10), strict=True))

    def fit(model: Any, compression: Any, first: int, last: int) -> None:
        model.compile(
            hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.05), compression=compression), loss=loss_of
        )
        callback = CompressionCheckpoint(compression, f"{folder}/{{epoch:02d}}.npz")
        options = {"batch_size": 32, "shuffle": False, "verbose": 0, "callbacks": [callback]}
        model.fit(inputs, labels, initial_epoch=first, epochs=last, **options)

    model = network()
    fit(model, sidco(), 0, 1)
    weights = model.get_weights()
    fit(model, sidco(), 1, 2)
    resumed = digest(model)
    assert sorted(path.name for path in Path(folder).glob(f"*.rank{hvd.rank()}.npz")) == [
        f"{epoch:02d}.rank{hvd.rank()}.npz" for epoch in (1, 2)
    ]
    model.set_weights(weights)
    fit(model, sidco(), 0, 1)
    assert digest(model) != resumed  # what was held back matters
    (Path(folder) / "01.rank1.npz").unlink(missing_ok=True)  # one rank's alone
    expect(tf.errors.OpError, "rank 1: ", "01.rank1.npz", "initial_epoch=0", run=lambda: fit(model, sidco(), 1, 2))
    assert_replicas_equal(model)


@scenario("mpirun 2")
def flushing() -> None:
    """One rank asks; the next step sends what all hold back, and leaves nothing."""
    model = network()
    compression = sidco()
    step = stepping(model, compression, lr=0.05)
    train(step, steps=5)
    assert any(np.any(array) for array in memory(compression).values())
    if hvd.rank() == 1:
        compression.flush()
    train(step, steps=1, first=5)
    assert not any(np.any(array) for array in memory(compression).values())
    assert_replicas_equal(model)
    train(step, steps=2, first=6)
    assert any(np.any(array) for array in memory(compression).values())


@dataclass(frozen=True)
class Comparable(hvd_compress.Dense):
    """As one might write it: hashed by its parameters, not by who it is; Horovod would take two of them for one."""


class Unhashable(hvd_compress.Dense):
    __hash__ = None  # type: ignore[assignment]


@scenario("mpirun 2")
def clear_errors() -> None:
    model = network()
    inputs, labels = next(batches(1))
    adasum = stepping(model, sidco(), op=hvd.Adasum)
    expect(ValueError, "Adasum", "hvd.Average", run=lambda: adasum(inputs, labels))
    xla = tf.function(stepping(model, sidco(), graph=False), jit_compile=True)
    expect(NotImplementedError, "jit_compile", run=lambda: xla(inputs, labels))
    model.compile(
        hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=sidco()),
        loss=loss_of,
        jit_compile=True,
    )
    expect(NotImplementedError, "jit_compile", run=lambda: model.fit(inputs, labels, verbose=0))
    whole = tf.ones((64, 64), tf.int32)
    expect(TypeError, "int32", run=lambda: hvd.allreduce(whole, compression=sidco(), op=hvd.Sum))
    expect(NotImplementedError, "reducescatter", run=lambda: hvd.reducescatter(tf.ones((64, 64)), compression=sidco()))
    expect(RuntimeError, "compression=", run=lambda: sidco().compress(tf.ones((64, 64))))
    reused = sidco()
    first = hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=reused)
    expect(
        ValueError,
        "another optimizer",
        run=lambda: hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=reused),
    )
    del first
    for kind in (Comparable, Unhashable):
        expect(TypeError, "compressor_dataclass", kind.__name__, run=kind)
    served = sidco()
    stepping(model, served)(inputs, labels)
    expect(TypeError, "already serves TensorFlow", run=lambda: served.compress(np.ones((64, 64), np.float32)))
    expect(RuntimeError, "before the first step", run=lambda: served.load_state_dict(served.state_dict()))


@scenario("mpirun 2")
def disagreement_is_reported_everywhere() -> None:
    model = network()
    step = stepping(model, hvd_compress.TopK(0.05 if hvd.rank() else 0.06))
    expect(tf.errors.OpError, "ranks disagree on the compressor", run=lambda: train(step, steps=1))


@scenario("mpirun 2", long=["mpirun 4"])
def disagreement_outside_an_optimizer_is_reported_everywhere() -> None:
    tensor = tf.ones([64, 64])
    for graph in (False, True):

        def run(compression: Any, op: Any = hvd.Average, graph: bool = graph, **factors: float) -> Any:
            reduce = functools.partial(hvd.allreduce, tensor, compression=compression, op=op, **factors)
            return (tf.function(reduce) if graph else reduce)().numpy()

        for op, factors in (
            (hvd.Average, {}),
            (hvd.Sum, {"prescale_factor": -0.3}),
            (hvd.Sum, {"prescale_factor": 0.0}),
        ):
            for mine in (hvd_compress.RandKMaxNorm(0.5, seed=1), hvd_compress.Half(dtype="float16")):
                result = run(mine, op, **factors)
                assert same({"": result}, {"": gather(result)[0]})
        seeded = hvd_compress.RandKMaxNorm(0.5, seed=hvd.rank())
        other = hvd_compress.TopK(0.5) if hvd.rank() else hvd_compress.Dense()
        for differs in (seeded, other):
            expect((ValueError, tf.errors.OpError), "ranks disagree on", run=functools.partial(run, differs))


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def disagreement_on_the_kind_of_compressor_is_reported_everywhere() -> None:
    """Also where one kind has something to find out before the first step that the other does not ask for: which
    ranks share a node. Nothing is left over: neither what Horovod reduces itself, nor what the same step sends when it
    is tried again."""
    for wrapped in (hvd_compress.TwoLevel(hvd_compress.TopK(0.05)), hvd_compress.QSGDMaxNorm()):
        step = stepping(network(), wrapped if hvd.rank() == 0 else hvd_compress.TopK(0.05))
        for _ in range(2):
            run = functools.partial(train, step, steps=1)
            expect((ValueError, tf.errors.OpError), "ranks disagree on the compressor", run=run)
    model = network()
    train(stepping(model, sidco()), steps=1)  # whose collectives have the same names on every rank
    assert_replicas_equal(model)
