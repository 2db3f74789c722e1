"""Scenarios under TensorFlow: what comes of a call is what Horovod was asked for, or a clear refusal."""

from __future__ import annotations

import collections
import logging
from typing import Any

import horovod
import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks.checks import expect, learns, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.arguments import values
from tests.ranks.tensorflow.training import (
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


def weights(names: str = "abc") -> dict[str, Any]:
    return {name: tf.Variable(tf.zeros((64, 64 + 16 * place)), name=name) for place, name in enumerate(names)}


def reducing(compression: Any, variables: list[Any], **keywords: Any) -> Any:
    """A traced function: the reduced gradients of ``variables`` (None where a gradient is), which are its arguments."""

    @tf.function
    def reduce(wanted: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            terms = [tf.reduce_sum(v * g) for v, g in zip(variables, wanted, strict=True) if g is not None]
            loss = tf.add_n(terms)
        return hvd.DistributedGradientTape(tape, compression=compression, **keywords).gradient(loss, variables)

    return reduce


@scenario("mpirun 2")
def the_set_of_gradients_changes() -> None:
    """Sets come and go, in any order: no gradient is lost, and none counts twice."""
    orders = [["ab", "bc", "ab", "c", "abc", "b", "abc", "ab"], ["abc", "a", "a", "abc", "bc", "abc"]]
    for make in (lambda: hvd_compress.TopK(0.05, bucket_mb=0.05), sidco, lambda: hvd_compress.TopK(1.0)):
        for order in orders:
            compression = make()
            known = weights()
            total = collections.defaultdict(float)
            got = collections.defaultdict(float)
            functions = {key: reducing(compression, [known[name] for name in key]) for key in set(order)}
            for t, key in enumerate(order):
                gradients = [values(*known[name].shape, key=100 * t + place) for place, name in enumerate(key)]
                means = functions[key](gradients)
                for name, gradient, mean in zip(key, gradients, means, strict=True):
                    total[name] += gradient.numpy().astype(np.float64)
                    got[name] += mean.numpy().astype(np.float64)
            assert len(set(gather(tuple(array.tobytes() for array in got.values())))) == 1
            held = compression.state_dict()["memory"]
            assert sorted(held) == sorted(total)
            for name in total:
                exact = np.sum(gather(total[name]), 0) / hvd.size()
                left = np.sum(gather(held[name]["residual"]), 0).reshape(exact.shape) / hvd.size()
                np.testing.assert_allclose(got[name] + left, exact, rtol=1e-4, atol=1e-4)


@scenario("mpirun 2")
def gradients_that_are_none() -> None:
    """Two tasks on one model, each without gradients for the other's head: as Horovod does it, and compressed."""

    def run(compression: Any) -> list[np.ndarray]:
        known = list(weights().values())
        reduce = reducing(compression, known)
        found = []
        for t in range(4):
            wanted = [values(*v.shape, key=10 * t + place) for place, v in enumerate(known)]
            wanted[1 + t % 2] = None
            found += [None if g is None else g.numpy() for g in reduce(wanted)]
        return found

    for left, right in zip(run(hvd_compress.TopK(1.0)), run(hvd.Compression.none), strict=True):
        assert (left is None) == (right is None)
        assert left is None or np.allclose(left, right, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def layers_are_thawed() -> None:
    """The head alone, then all: the state is one, and goes on after a checkpoint."""
    model = network()
    compression = sidco()
    head = model.layers[-2:]
    for layer in model.layers[:-2]:
        layer.trainable = False
    train(stepping(model, compression, lr=0.05), steps=5)
    for layer in model.layers:
        layer.trainable = True
    losses = train(stepping(model, compression), steps=50, first=5)
    learns(losses)
    assert_replicas_equal(model)
    state = compression.state_dict()
    names = sorted(name for members in state["layout"] for name in members)
    assert names == sorted(state["memory"])
    assert len(names) == len(set(names)) == 3
    assert head[0].kernel.name.removesuffix(":0") in names


@scenario("mpirun 2")
def other_groups() -> None:
    """The same variables in other groups than before: their memories go along."""
    model = network()
    compression = sidco()
    train(stepping(model, compression, num_groups=2), steps=5)
    held = memory(compression)
    step = stepping(model, compression)
    learns(train(step, first=5))
    assert_replicas_equal(model)
    assert memory(compression).keys() == held.keys()


def sharing(compression: Any, *, graph: bool = True, steps: int = 4, **keywords: Any) -> tuple[list[Any], list[Any]]:
    """The means of two variables, a and b, that share a gradient, and of two small ones, in steps that alternate with
    such of b alone; and of a and b the sums of the means and of this rank's gradients."""
    known = [tf.Variable(tf.zeros((64, 64)), name=name) for name in "ab"]
    small = [tf.Variable(tf.zeros((8, 8)), name=name) for name in ("small_a", "small_b")]

    def both(wanted: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            corner = tf.reduce_sum((small[0] + small[1]) * wanted[:8, :8])
            loss = tf.reduce_sum((known[0] + known[1]) * wanted) + corner
        reducing = hvd.DistributedGradientTape(tape, compression=compression, **keywords)
        return reducing.gradient(loss, [*known, *small])

    alone = reducing(compression, known[1:])
    both = tf.function(both) if graph else both
    got, total = [np.zeros((64, 64)) for _ in known], [np.zeros((64, 64)) for _ in known]
    found: list[Any] = []
    for t in range(steps):
        wanted = values(64, 64, key=t)
        means = both(wanted) if t % 3 else [None, *alone([wanted])]
        found += [None if mean is None else mean.numpy() for mean in means]
        for place in (0, 1):
            if means[place] is not None:
                got[place] += means[place].numpy()
                total[place] += wanted.numpy()
    return found, list(zip(got, total, strict=True))


def check_sharing(**keywords: Any) -> None:
    expected, _ = sharing(hvd.Compression.none, **keywords)
    for left, right in zip(sharing(hvd_compress.TopK(1.0), **keywords)[0], expected, strict=True):
        assert (left is None) == (right is None)
        assert left is None or np.allclose(left, right, rtol=1e-5, atol=1e-6)
    compression = hvd_compress.TopK(0.05)
    _, ledger = sharing(compression, **keywords)
    held = compression.state_dict()["memory"]
    for name, (got, total) in zip("ab", ledger, strict=True):
        exact = np.sum(gather(total), 0) / hvd.size()
        left = np.sum(gather(held[name]["residual"]), 0).reshape(exact.shape) / hvd.size()
        np.testing.assert_allclose(got + left, exact, rtol=1e-4, atol=1e-4)


@scenario("mpirun 2")
def variables_that_share_a_gradient() -> None:
    """Of a sum all terms have one tensor for their gradient, which comes once for each; alternating with one of them
    alone, so that their memories differ."""
    check_sharing()


@scenario(long=["mpirun 2"])
def variables_that_share_a_gradient_in_other_ways() -> None:
    check_sharing(steps=6, num_groups=2)
    check_sharing(steps=6, graph=False)
    compression = hvd_compress.DGC(0.05)
    sharing(compression)
    assert compression.stats()["total"]["skipped_steps"] == 0
    momenta = [arrays["mean_momentum"] for arrays in compression.state_dict()["memory"].values() if len(arrays) == 1]
    assert len(momenta) == 2
    assert all(momentum.any() for momentum in momenta)


@scenario("mpirun 2")
def a_variable_that_is_named_twice() -> None:
    """Its gradient is reduced twice, to the same; it is exchanged once."""

    def run(compression: Any) -> list[np.ndarray]:
        known = list(weights("ab").values())
        reduce = reducing(compression, [known[0], known[1], known[0]])
        found = []
        for t in range(3):
            a, b, c = (values(*v.shape, key=10 * t + k) for k, v in enumerate((known[0], known[1], known[0])))
            found += [mean.numpy() for mean in reduce([a, b, c])]
        return found

    for left, right in zip(run(hvd_compress.TopK(1.0)), run(hvd.Compression.none), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    small = tf.Variable(tf.zeros((8, 8)), name="small")
    reduce = reducing(hvd_compress.DGC(0.05), [small, small])
    expect(ValueError, "advance it twice", "small", run=lambda: reduce([values(8, 8)] * 2))


@scenario("mpirun 2")
def two_calls_in_one_function() -> None:
    """The same variables, and others that share some, reduced several times in one graph."""

    def run(compression: Any) -> list[np.ndarray]:
        known = list(weights().values())

        @tf.function
        def step(wanted: list[Any]) -> list[Any]:
            found = []
            for places in ((0, 1), (0, 1), (1, 2), (0, 2)):
                variables = [known[place] for place in places]
                with tf.GradientTape() as tape:
                    loss = tf.add_n([tf.reduce_sum(known[place] * wanted[place]) for place in places])
                found += hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, variables)
            return found

        found = []
        for t in range(5):
            found += [g.numpy() for g in step([values(*v.shape, key=10 * t + place) for place, v in enumerate(known)])]
        return found

    for left, right in zip(run(hvd_compress.TopK(1.0, bucket_mb=0.02)), run(hvd.Compression.none), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def functions_in_functions() -> None:
    """A traced function is called twice in one graph: each call has its own result."""

    def run(compression: Any) -> list[np.ndarray]:
        reduce = tf.function(lambda x: hvd.allreduce(x, compression=compression, op=hvd.Sum))
        twice = tf.function(lambda x, y: (reduce(x), reduce(y), reduce(x - y)))
        results = []
        for t in range(10):
            results += [r.numpy() for r in twice(values(256, 256, key=t), values(256, 256, key=-t - 1 + 100))]
        return results

    for left, right in zip(run(hvd_compress.TopK(1.0)), run(hvd.Compression.none), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def names_identify_a_collective() -> None:
    """With a name and ``ignore_name_scope``, ranks whose graphs differ still meet, as in Horovod."""

    def run(compression: Any) -> list[np.ndarray]:
        @tf.function
        def reduce(x: Any, y: Any) -> Any:
            keywords = {"compression": compression, "ignore_name_scope": True}
            pairs = [("first", x), ("second", y)]
            found = {}
            for name, tensor in pairs if hvd.rank() else reversed(pairs):
                with tf.name_scope(f"rank{hvd.rank()}"):
                    found[name] = hvd.allreduce(tensor * 1.0, name=f"given_{name}", **keywords)
            return found["first"], found["second"]

        return [result.numpy() for result in reduce(values(64, 64), values(64, 64, key=1))]

    for left, right in zip(run(hvd_compress.TopK(1.0)), run(hvd.Compression.none), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@scenario("mpirun 2")
def gradients_of_reduced_values() -> None:
    """Beside another term and alone; of variables; of a reduced gradient; in one function and across two."""

    def standalone(compression: Any, graph: bool) -> list[Any]:
        variable = tf.Variable(values(64, 64))

        def loss() -> Any:
            reduced = hvd.allreduce(variable, op=hvd.Sum, prescale_factor=0.5, compression=compression)
            return tf.reduce_sum(reduced**3) + 7.0 * tf.reduce_sum(variable**2)

        def step() -> Any:
            with tf.GradientTape() as tape:
                value = (tf.function(loss) if graph is None else loss)()
            return [tape.gradient(value, variable)]

        return (tf.function(step) if graph else step)()

    def second_order(compression: Any, graph: bool) -> list[Any]:
        variables = list(weights("ab").values())
        for place, variable in enumerate(variables):
            variable.assign(0.1 * values(*variable.shape, key=place))

        def step() -> list[Any]:
            with tf.GradientTape() as outer:
                with tf.GradientTape() as tape:
                    loss = tf.add_n([tf.reduce_sum(v**3) for v in variables])
                tape = hvd.DistributedGradientTape(tape, compression=compression)
                gradients = tape.gradient(loss, variables)
                norm = tf.add_n([tf.reduce_sum(g**2) for g in gradients])
            return outer.gradient(norm, variables)

        return (tf.function(step) if graph else step)()

    for run, modes in ((standalone, (True, False, None)), (second_order, (True, False))):
        for graph in modes:
            expected = run(hvd.Compression.none, graph)
            for compression in (hvd_compress.Dense(), hvd_compress.TopK(1.0)):
                found = run(compression, graph)
                for left, right in zip(found, expected, strict=True):
                    close = np.allclose(left, right, rtol=1e-4, atol=1e-5)
                    assert close, f"{run.__name__}, {graph}: {left} where Horovod has {right}"


@scenario("mpirun 2")
def steps_that_are_not_finite() -> None:
    """NaN on one rank, in a compressed gradient or in another: what the means are then, and the state as it was."""
    for nonfinite, filled in (("skip", np.nan), ("nan", np.nan), ("zero", 0.0)):
        compression = hvd_compress.SIDCo(0.05, stages="adaptive", nonfinite=nonfinite)
        variables = [tf.Variable(tf.zeros((64, 64))), tf.Variable(tf.zeros(64))]
        reduce = reducing(compression, variables)
        good = [values(64, 64), values(64, key=1)]
        for _ in range(3):
            reduce(good)
        before = compression.state_dict()
        for place in (0, 1):
            bad = list(good)
            if hvd.rank() == hvd.size() - 1:
                bad[place] = bad[place] * np.nan
            first, second = reduce(bad)
            np.testing.assert_array_equal(first, np.full((64, 64), filled, np.float32))
            assert np.isnan(second.numpy()).all() == (place == 1)  # not compressed: Horovod's affair
            after = compression.state_dict()
            assert after["algorithm"] == before["algorithm"]
            assert all(
                after["memory"][name][key].tobytes() == array.tobytes()
                for name, arrays in before["memory"].items()
                for key, array in arrays.items()
            )
        assert compression.stats()["total"]["skipped_steps"] == 2


@scenario("mpirun 2")
def zeros_for_one_bucket() -> None:
    """The other buckets' means are applied, so their memories are not those from before the step: nothing is lost."""
    compression = hvd_compress.TopK(0.05, bucket_mb=1e-6, nonfinite="zero")
    known = weights("ab")
    reduce = reducing(compression, list(known.values()))
    total = {name: np.zeros(variable.shape) for name, variable in known.items()}
    got = {name: np.zeros(variable.shape) for name, variable in known.items()}
    for t in range(6):
        gradients = [values(*variable.shape, key=10 * t + place) for place, variable in enumerate(known.values())]
        bad = t in (2, 3)
        sent = list(gradients)
        if bad and hvd.rank() == 1:
            sent[t % 2] = sent[t % 2] * np.inf
        means = reduce(sent)
        for place, name in enumerate(known):
            lost = bad and place == t % 2
            total[name] += 0 if lost else gradients[place].numpy().astype(np.float64)
            got[name] += means[place].numpy()
            assert not lost or not means[place].numpy().any()
    held = compression.state_dict()["memory"]
    for name in known:
        exact = np.sum(gather(total[name]), 0) / hvd.size()
        left = np.sum(gather(held[name]["residual"]), 0).reshape(exact.shape) / hvd.size()
        np.testing.assert_allclose(got[name] + left, exact, rtol=1e-4, atol=1e-4)


@scenario("mpirun 2")
def loss_scales() -> None:
    """Keras's loss scale sees a step that is not finite wherever it may; with zeros, only what Horovod reduces."""
    for nonfinite in ("skip", "nan"):
        model = network()
        compression = sidco(nonfinite=nonfinite)
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD(0.1), initial_scale=64.0)

        @tf.function
        def step(inputs, labels, poison, model=model, optimizer=optimizer, compression=compression):
            variables = model.trainable_variables
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(inputs, training=True)) + poison * variables[0][0, 0]
                scaled = optimizer.get_scaled_loss(loss)
            tape = hvd.DistributedGradientTape(tape, compression=compression)
            gradients = optimizer.get_unscaled_gradients(tape.gradient(scaled, variables))
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

        for t, (inputs, labels) in enumerate(batches(6)):
            before = digest(model), memory(compression) if t else {}
            bad = t == 3 and hvd.rank() == hvd.size() - 1
            step(inputs, labels, tf.constant(np.inf if bad else 0.0))
            if t == 3:
                assert digest(model) == before[0]
                assert same(before[1], memory(compression))
        assert float(optimizer.loss_scale) == 32.0
        assert_replicas_equal(model)


@scenario("mpirun 2")
def names_that_differ_by_rank() -> None:
    """Rank 0 has built another model before: Keras numbers its layers on from there.

    The step is eager: in a traced one, Horovod names what it reduces itself after the layers, and waits for ever.
    """
    if hvd.rank() == 0:
        network()
    tf.keras.utils.set_random_seed(0)
    layers = [tf.keras.layers.Dense(width) for width in (128, 128, 10)]
    if hvd.rank() == 0:
        layers = [tf.keras.layers.Dense(width) for width in (128, 128, 10)]
    model = tf.keras.Sequential([tf.keras.Input((64,)), *layers])
    names = [variable.name for variable in model.trainable_variables]
    assert len(set(map(tuple, gather(names)))) == 2
    for variable in model.variables:
        variable.assign(tf.random.stateless_normal(variable.shape, (1, 2)) * 0.1)
    for compression in (hvd.Compression.none, sidco()):
        train(stepping(model, compression, lr=0.1, graph=False), steps=5)
        assert_replicas_equal(model)


@scenario("mpirun 2")
def compressors_made_in_a_step() -> None:
    """Outside a traced function each would have a memory of its own, and lose it: said once."""
    warning = (
        "TopK(ratio=0.1) is made anew in every step, so that what it holds back is lost with every step: make it once, "
        "outside the training loop"
    )
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("hvd_compress")
    log.addHandler(handler)
    try:
        for kept in (hvd_compress.TopK(0.1), None):
            variable = tf.Variable(tf.zeros((64, 64)))
            messages.clear()
            for t in range(5):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(variable * values(64, 64, key=t))
                compression = kept or hvd_compress.TopK(0.1)
                hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, [variable])
            assert messages == ([] if kept else [warning])
    finally:
        log.removeHandler(handler)


@scenario("mpirun 2")
def looks_that_fail() -> None:
    """Another Horovod, or one that has been changed: an error, not a tensor without memory."""
    variable = tf.Variable(tf.zeros((64, 64)))
    reduce = reducing(sidco(), [variable])
    version, horovod.__version__ = horovod.__version__, "0.99.0"
    try:
        expect(RuntimeError, "0.99.0", "0.28.1", run=lambda: reduce([values(64, 64)]))
        expect(RuntimeError, "0.99.0", run=lambda: hvd.allreduce(values(64, 64), compression=sidco()))
        expect(
            RuntimeError,
            "0.99.0",
            run=lambda: hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=sidco()),
        )
    finally:
        horovod.__version__ = version
    changed = tf.function(lambda x: hvd._allreduce_cond(x, compression=sidco(), process_set=hvd.global_process_set))
    expect(RuntimeError, "reduces an optimizer's gradients", run=lambda: changed(values(64, 64)))


@scenario("mpirun 2")
def what_is_no_compressor() -> None:
    """The class in place of an instance: what to write instead."""
    variable = tf.Variable(tf.zeros((64, 64)))
    reduce = reducing(hvd_compress.SIDCo, [variable])
    expect(TypeError, "compression=SIDCo()", run=lambda: reduce([values(64, 64)]))
    expect(TypeError, "compression=SIDCo()", run=lambda: hvd.allreduce(values(64, 64), compression=hvd_compress.SIDCo))


@scenario("mpirun 2")
def float64_beyond_float32() -> None:
    """The rank whose gradient it is says so, every time; the mean is infinite or NaN on all."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hvd_compress").addHandler(handler)
    try:
        variable = tf.Variable(tf.zeros((64, 64), tf.float64), name="doubles")
        reduce = reducing(hvd_compress.TopK(1.0), [variable])
        for step, factor in enumerate((1.0, 1e39, float("inf"), 1e39)):
            gradient = tf.fill((64, 64), tf.constant(factor if hvd.rank() else 1.0, tf.float64))
            [mean] = reduce([gradient])
            assert bool(np.isfinite(mean.numpy()).all()) is (factor == 1.0)
            assert len(lines) == (0, 1, 1, 2)[step] * hvd.rank()
        assert all("doubles" in line for line in lines)
    finally:
        logging.getLogger("hvd_compress").removeHandler(handler)
