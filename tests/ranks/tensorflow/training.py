"""A small network, its data, and training loops with everything that can vary, for TensorFlow; runs on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.state_format import seal
from tests.ranks.checks import memory, same

STEPS = 50

loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def sidco(**keywords: Any) -> hvd_compress.SIDCo:
    return hvd_compress.SIDCo(0.05, **{"bucket_mb": 0.05, **keywords})


def network(seed: int = 0) -> Any:
    """Three weight matrices that are compressed (one below min_numel is not), and biases that are not."""
    tf.keras.utils.set_random_seed(seed)
    widths = (128, 128, 32)
    layers = [tf.keras.layers.Dense(width, "relu") for width in widths]
    # float32 whatever the policy, as mixed precision wants it
    model = tf.keras.Sequential([tf.keras.Input((64,)), *layers, tf.keras.layers.Dense(10, dtype="float32")])
    assert len(model.trainable_variables) == 8
    return model


def batches(steps: int, first: int = 0, size: int = 32) -> Iterator[tuple[Any, Any]]:
    """This rank's batches of a learnable problem; batch ``t`` depends on rank and t only."""
    rule = np.random.default_rng(5).standard_normal((64, 2)).astype(np.float32)
    for t in range(first, first + steps):
        inputs = np.random.default_rng(1000 * t + hvd.rank()).standard_normal((size, 64)).astype(np.float32)
        yield tf.constant(inputs), tf.constant((inputs @ rule).argmax(1))


def stepping(model: Any, compression: Any, *, lr: float = 0.3, graph: bool = True, **keywords: Any) -> Callable:
    """A training step around ``DistributedGradientTape``; returns the loss."""
    optimizer = tf.keras.optimizers.SGD(lr)

    def step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        tape = hvd.DistributedGradientTape(tape, compression=compression, **keywords)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return tf.function(step) if graph else step


def train(step: Callable, steps: int = STEPS, first: int = 0) -> list[float]:
    """Run a step over batches; returns the losses."""
    return [float(step(inputs, labels)) for inputs, labels in batches(steps, first)]


def gather(thing: Any) -> list[Any]:
    return hvd.allgather_object(thing) if hvd.size() > 1 else [thing]


def digest(model: Any) -> str:
    """A hash of all variables' bits."""
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.variables)).hexdigest()


def assert_replicas_equal(model: Any, among: list[int] | None = None) -> None:
    """Bit for bit, over the ranks (or those ``among``; every rank calls this all the same)."""
    digests = gather(digest(model))
    assert len({digests[rank] for rank in among or range(hvd.size())}) == 1, "replicas differ"


def skip_a_step_and_flush(model: Any, compression: Any) -> None:
    """Train two steps, one that is not finite on the last rank and leaves no trace, and one that is flushed."""
    step = stepping(model, compression, lr=0.05)
    train(step, steps=2)
    before, weights = memory(compression), model.get_weights()
    inputs, labels = next(batches(1, 2))
    step(inputs * (np.inf if hvd.rank() == hvd.size() - 1 else 1), labels)
    assert np.isnan(model.trainable_variables[0].numpy()).all()
    assert same(before, memory(compression))
    model.set_weights(weights)
    if hvd.rank() == 0:
        compression.flush()
    train(stepping(model, compression, lr=0.05), steps=1, first=3)
    assert not any(array.any() for array in memory(compression).values())


def check_as_horovod(compressions: Iterable[Any]) -> None:
    """Train three steps with each, and without compression: the weights are the same but for rounding."""
    plain = network()
    train(stepping(plain, hvd.Compression.none), steps=3)
    for compression in compressions:
        model = network()
        train(stepping(model, compression), steps=3)
        assert_replicas_equal(model)
        for mine, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def check_ledger(model: Any, compression: Any) -> None:
    """Train four steps, of which the last is flushed: the weights are where the sum of all gradients has them, and all
    memories are empty."""
    lr, start = 0.05, model.get_weights()
    step, sums = stepping(model, compression, lr=lr), [np.zeros_like(weight) for weight in start]
    for t, (inputs, labels) in enumerate(batches(4)):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        for total, gradient in zip(sums, tape.gradient(loss, model.trainable_variables), strict=True):
            total += gradient.numpy()
        if t == 3 and hvd.rank() == hvd.size() - 1:
            compression.flush()
        step(inputs, labels)
        assert_replicas_equal(model)
    for weight, first, totals in zip(model.get_weights(), start, zip(*gather(sums), strict=True), strict=True):
        np.testing.assert_allclose((first - weight) / lr, np.mean(totals, 0), rtol=1e-3, atol=1e-4)
    assert not any(array.any() for array in memory(compression).values())


def check_resumed(make: Callable[[], Any], another: Callable[[], Any], workers: int) -> None:
    """Train, flush, and go on from one state for all, which says that it is of so many ``workers``, with ``another``
    compressor."""
    model, compression = network(), make()
    train(stepping(model, compression), steps=2)
    compression.flush()
    train(stepping(model, compression), steps=1, first=2)
    one = gather(compression.state_dict())[0]
    assert not any(array.any() for arrays in one["memory"].values() for array in arrays.values())
    again = another()
    again.load_state_dict(seal({**one, "workers": workers}))
    train(stepping(model, again), steps=2, first=3)
    assert_replicas_equal(model)
