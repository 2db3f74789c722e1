"""Every function of Horovod's under TensorFlow that takes ``compression=``, and every argument of it.

The table says what comes of each: honoured exactly as Horovod honours it without compression, or refused. The oracle
is Horovod itself in the same job, beside compressors that lose nothing.
"""

from __future__ import annotations

import inspect
import itertools
import tempfile
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import horovod.keras
import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks.process_sets import halves
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import gather

MODULES = (hvd, hvd_keras, horovod.keras)
LOSSLESS = (hvd_compress.Dense, lambda: hvd_compress.TopK(1.0))

COLLECTIVES = (
    "horovod.tensorflow.allreduce",
    "horovod.tensorflow.grouped_allreduce",
    "horovod.tensorflow.reducescatter",
    "horovod.tensorflow.grouped_reducescatter",
    "horovod.tensorflow.keras.allreduce",
    "horovod.keras.allreduce",
)
TAPES = ("horovod.tensorflow.DistributedGradientTape", "horovod.tensorflow.PartialDistributedGradientTape")
OPTIMIZERS = ("horovod.tensorflow.keras.DistributedOptimizer",)
FIRST_OPTIMIZERS = ("horovod.tensorflow.DistributedOptimizer",)
KERAS_OPTIMIZERS = (
    "horovod.keras.DistributedOptimizer",
    "horovod.keras.PartialDistributedOptimizer",
    "horovod.tensorflow.keras.load_model",
    "horovod.keras.load_model",
)


@dataclass(frozen=True)
class Honoured:
    """Arguments with which compression makes no difference; ``tensor`` stands for what is reduced by the runner."""

    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Arguments with which compression raises ``error``, whose message has ``word``."""

    arguments: dict[str, Any]
    error: type[Exception]
    word: str


def values(*shape: int, key: int = 0) -> Any:
    """This rank's values: not the same on any two ranks."""
    return tf.constant(np.random.default_rng((hvd.rank(), key)).standard_normal(shape), tf.float32)


def slices(key: int = 0) -> tf.IndexedSlices:
    return tf.IndexedSlices(values(3, 64, key=key), tf.constant([0, 5, hvd.rank()]), tf.constant([64, 64]))


def dense(results: Any) -> list[np.ndarray]:
    """The values of tensors, sparse ones made dense."""
    results = results if isinstance(results, (list, tuple)) else [results]
    return [tf.convert_to_tensor(result).numpy() for result in results]


def half() -> Any:
    """The process set that this rank is in."""
    return halves(hvd.size())[hvd.rank() % 2]


def collective(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Call one of Horovod's collectives, and take its gradient."""
    arguments = dict(arguments)
    takes_list = "grouped" in function.__name__
    value = arguments.pop("tensor", [values(64, 64), values(8, key=1), values(2048, key=2)] if takes_list else None)
    value = values(64, 64) if value is None else value

    def call(tensor: Any) -> Any:
        results = function(tensor, compression=compression, **arguments)
        results = [results] if not isinstance(results, (list, tuple)) else list(results)
        results = [tf.convert_to_tensor(result) for result in results]
        return results, tf.add_n([tf.reduce_sum(tf.cast(result, tf.float32) ** 2) for result in results])

    with tf.GradientTape() as tape:
        differentiable = not isinstance(value, tf.IndexedSlices) and not isinstance(value, list)
        if differentiable:
            tape.watch(value)
        results, total = (tf.function(call) if graph else call)(value)
    return dense(results) + (dense(tape.gradient(total, value)) if differentiable else [])


def keras_collective(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Call Horovod's collective of values; there is no other way than eagerly."""
    return dense(function(**{"value": values(64, 64).numpy(), "compression": compression, **arguments}))


def variables() -> list[Any]:
    """Two weights that are compressed, one that is looked up in, and a bias."""
    names = {"first": (64, 64), "second": (64, 32), "table": (64, 64), "bias": (32,)}
    return [tf.Variable(tf.fill(shape, 0.5), name=name) for name, shape in names.items()]


def loss_of(weights: list[Any]) -> Any:
    """A loss whose gradients differ by rank; that of the table is sparse."""
    first, second, table, bias = weights
    looked_up = tf.nn.embedding_lookup(table, tf.constant([1, 3, 3, hvd.rank()]))
    outputs = tf.tanh(values(8, 64, key=3) @ first) @ second + bias
    return tf.reduce_mean(outputs**2) + tf.reduce_sum(looked_up * values(4, 64, key=4))


class Plain(tf.keras.layers.Layer):
    """A layer whose weights are those that it is given."""

    def __init__(self, *weights: Any) -> None:
        super().__init__()
        self._trainable_weights = list(weights)


def groups_of(weights: list[Any]) -> list[list[Any]]:
    return [[weights[0], weights[3]], [weights[1]]]


def resolved(arguments: dict[str, Any], weights: list[Any]) -> dict[str, Any]:
    """Arguments that depend on the variables are functions of them in the table."""
    return {key: value(weights) if inspect.isfunction(value) else value for key, value in arguments.items()}


def tape_gradients(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Take two steps with a distributed tape."""
    found = []
    weights = variables()
    keywords = resolved(arguments, weights)

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(weights)
        tape = function(**{"gradtape": tape, "compression": compression, **keywords})
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, weights)]

    step = tf.function(step) if graph else step
    for _ in range(2):
        gradients = step()
        found += dense(gradients)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.1 * gradient)
    return found


def keras_training(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Take four steps with a Keras optimizer's ``minimize``."""
    weights = variables()
    keywords = {"optimizer": tf.keras.optimizers.SGD(0.1), **resolved(arguments, weights)}
    if "backward_passes_per_step" in keywords:  # Horovod adds up dense gradients only
        keywords["sparse_as_dense"] = True
    optimizer = function(**{"compression": compression, **keywords})
    optimizer.build(weights)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(weights)
        optimizer.minimize(loss, weights, tape=tape)

    step = tf.function(step) if graph else step
    for _ in range(4):
        step()
    return dense(weights)


def legacy_training(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Take two steps with an optimizer of TensorFlow 1; in a traced function, for there is no other way."""
    weights = variables()
    plain = tf.compat.v1.train.GradientDescentOptimizer(0.1)
    optimizer = function(**{"optimizer": plain, "compression": compression, **resolved(arguments, weights)})

    @tf.function
    def step() -> None:
        optimizer.apply_gradients(optimizer.compute_gradients(lambda: loss_of(weights), weights))

    for _ in range(2):
        step()
    return dense(weights)


def legacy_or_keras(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Train with the optimizer of TensorFlow 1, or with Keras's what Horovod cannot do with the other."""
    if set(arguments) & {"backward_passes_per_step", "average_aggregated_gradients"}:
        return keras_training(function, compression, arguments, graph)
    return legacy_training(function, compression, arguments, graph)


def loading(function: Callable, compression: Any, arguments: dict[str, Any], graph: bool) -> list[np.ndarray]:
    """Load a saved model, and train it."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential([tf.keras.Input((64,)), tf.keras.layers.Dense(64, name="only")])
    model.compile(tf.keras.optimizers.SGD(0.1), loss="mse")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.h5")
        model.save(path)
        loaded = function(**{"filepath": path, "compression": compression, **arguments})
    for weight in loaded.trainable_variables:
        weight.assign(tf.fill(weight.shape, 0.5))
    loaded.run_eagerly = not graph
    loaded.fit(values(32, 64), values(32, 64, key=1), batch_size=16, epochs=1, shuffle=False, verbose=0)
    return dense(loaded.trainable_variables)


def factors(name: str) -> list[Honoured]:
    return [Honoured({name: 0.5}), Honoured({name: 3.0, "op": hvd.Sum})]


def table() -> dict[str, tuple[Callable, dict[str, list[Honoured | Refused]]]]:
    """By function: how it is tried, and by argument what is tried of it."""
    default = [Honoured()]
    ops = [Honoured({"op": hvd.Average}), Honoured({"op": hvd.Sum})]
    others = [Refused({"op": op}, ValueError, "op must be") for op in (hvd.Min, hvd.Max, hvd.Product)]
    others.append(Refused({"op": hvd.Adasum}, ValueError, "Adasum"))
    common = {
        "average": [Honoured({"average": True}), Honoured({"average": False})],
        "device_dense": [Honoured({"device_dense": "/cpu:0"})],
        "compression": default,
        "op": [*ops, *others],
        "prescale_factor": factors("prescale_factor"),
        "postscale_factor": factors("postscale_factor"),
        "process_set": [Honoured({"process_set": half()}), Honoured({"process_set": half(), "op": hvd.Sum})],
        "ignore_name_scope": [Honoured({"ignore_name_scope": True}), Honoured({"ignore_name_scope": False})],
        "name": [Honoured({"name": "given"}), Honoured({"name": "given", "ignore_name_scope": True})],
    }
    variable = Honoured({"tensor": tf.Variable(values(64, 64))})
    small = Honoured({"tensor": values(8)})
    double = Honoured({"tensor": tf.cast(values(64, 64), tf.float64)})
    whole = Refused({"tensor": tf.ones((64, 64), tf.int32), "op": hvd.Sum}, TypeError, "int32")
    allreduce = {
        "tensor": [variable, small, double, Honoured({"tensor": slices()}), whole],
        "device_sparse": [Honoured({"tensor": slices(), "device_sparse": "/cpu:0"})],
        **common,
    }
    grouped = {key: cases for key, cases in allreduce.items() if key != "tensor"}
    mixed = {"tensor": [slices(), values(64, 64)]}  # in the other order, Horovod itself fails
    grouped["device_sparse"] = [Honoured({**mixed, "device_sparse": "/cpu:0"})]
    grouped["tensors"] = [Honoured(mixed), Honoured({"tensor": [values(8), values(64, 64), values(64, 64, key=1)]})]

    def refusing(function: Callable) -> dict[str, list[Refused]]:
        names = inspect.signature(function).parameters
        value = {"tensor": [values(64, 64)]} if "tensors" in names else {}
        return {name: [Refused(value, NotImplementedError, function.__name__)] for name in names}

    reducing = {
        "device_dense": common["device_dense"],
        "device_sparse": [Honoured({"device_sparse": "/cpu:0"})],
        "compression": default,
        "sparse_as_dense": [Honoured({"sparse_as_dense": True}), Honoured({"sparse_as_dense": False})],
        "gradient_predivide_factor": [
            Honoured({"gradient_predivide_factor": factor, "sparse_as_dense": True}) for factor in (0.5, 3.0)
        ],
        "groups": [
            Honoured({"groups": groups_of, "sparse_as_dense": True}),
            Honoured({"groups": 2, "sparse_as_dense": True}),
        ],
        "num_groups": [Honoured({"num_groups": 2, "sparse_as_dense": True})],
        "process_set": common["process_set"][:1],
        "scale_local_gradients": [Honoured({"scale_local_gradients": False})],
        "op": ops,
    }
    others = [replace(case, arguments={**case.arguments, "sparse_as_dense": True}) for case in others]
    tape = {**reducing, "gradtape": default, "op": [*ops, *others]}
    local = {
        "local_layers": [Honoured({"local_layers": lambda weights: [Plain(weights[1])]})],
        "scale_local_gradients": [
            Honoured({"local_layers": lambda weights: Plain(weights[0]), "scale_local_gradients": False})
        ],
    }
    passes = {
        "backward_passes_per_step": [Honoured({"backward_passes_per_step": 2})],
        "average_aggregated_gradients": [
            Honoured({"backward_passes_per_step": 2, "average_aggregated_gradients": True})
        ],
    }
    by_horovod = [
        Refused({"op": op}, ValueError, "only supports Average and Sum")
        for op in (hvd.Min, hvd.Max, hvd.Product, hvd.Adasum)
    ]
    named = {"optimizer": default, "name": [Honoured({"name": "given"})]}
    legacy = {**reducing, **passes, **named, "use_locking": [Honoured({"use_locking": True})]}
    keras = {**reducing, **passes, **named, "op": [*ops, *by_horovod]}
    partial = {
        key: cases
        for key, cases in {**keras, **local}.items()
        if key in inspect.signature(horovod.keras.PartialDistributedOptimizer).parameters
    }
    keras_allreduce = {
        "value": [Honoured({"value": values(8).numpy()}), Honoured({"value": values(64, 64)})],
        **{key: common[key] for key in ("name", "average", "compression", "prescale_factor", "postscale_factor", "op")},
    }
    keras_allreduce["name"] = keras_allreduce["name"][:1]
    load = {
        "filepath": default,
        "custom_optimizers": [Honoured({"custom_optimizers": [tf.keras.optimizers.SGD]})],
        "custom_objects": [Honoured({"custom_objects": {"unused": Plain}})],
        "compression": default,
        "legacy_opts": [Honoured({"legacy_opts": False})],
    }
    # horovod.keras is of Keras 3 where that is installed, which cannot read what Keras 2 has written
    load_of_keras3 = {
        name: [Refused({}, ValueError, "optimizer identifier")]
        for name in inspect.signature(hvd_keras.load_model).parameters
    }
    older_allreduce = {
        **keras_allreduce,  # averages unless told that it should not
        "op": [replace(case, arguments={**case.arguments, "average": None}) for case in keras_allreduce["op"]],
        "prescale_factor": [Honoured({"prescale_factor": 0.5})],
        "postscale_factor": [Honoured({"postscale_factor": 0.5, "average": False})],
    }
    old = {
        key: cases
        for key, cases in keras.items()
        if key in inspect.signature(horovod.keras.DistributedOptimizer).parameters
    }
    return {
        "horovod.tensorflow.allreduce": (collective, allreduce),
        "horovod.tensorflow.grouped_allreduce": (collective, grouped),
        "horovod.tensorflow.reducescatter": (collective, refusing(hvd.reducescatter)),
        "horovod.tensorflow.grouped_reducescatter": (collective, refusing(hvd.grouped_reducescatter)),
        "horovod.tensorflow.DistributedGradientTape": (tape_gradients, tape),
        "horovod.tensorflow.PartialDistributedGradientTape": (tape_gradients, {**tape, **local}),
        "horovod.tensorflow.DistributedOptimizer": (legacy_or_keras, legacy),
        "horovod.tensorflow.keras.DistributedOptimizer": (keras_training, keras),
        "horovod.tensorflow.keras.allreduce": (keras_collective, keras_allreduce),
        "horovod.tensorflow.keras.load_model": (loading, load),
        "horovod.keras.DistributedOptimizer": (keras_training, old),
        "horovod.keras.PartialDistributedOptimizer": (keras_training, partial),
        "horovod.keras.allreduce": (keras_collective, older_allreduce),
        "horovod.keras.load_model": (loading, load_of_keras3),
    }


def functions() -> dict[str, Callable]:
    """The public functions that take ``compression=``, by name."""
    return {
        f"{module.__name__}.{name}": function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and "compression" in inspect.signature(function).parameters
    }


def close(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two results differ by rounding alone."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool(np.allclose(left, right, rtol=1e-5, atol=1e-6 * np.abs(right).max()))


def tried(function: Callable, run: Callable, case: Honoured | Refused, graph: bool, make: Callable) -> str:
    """What went wrong with a case on this rank, or nothing."""
    expected = []
    if isinstance(case, Honoured):
        try:
            expected = run(function, hvd.Compression.none, case.arguments, graph)
        except Exception:
            return f"Horovod itself fails: {traceback.format_exc(limit=-3)}"
    try:
        found = run(function, make(), case.arguments, graph)
    except Exception as error:
        if isinstance(case, Honoured):
            return traceback.format_exc(limit=-6)
        if isinstance(error, case.error) and case.word in str(error):
            return ""
        return f"{case.error.__name__} with {case.word!r} was expected, not {error!r}"
    if isinstance(case, Refused):
        return f"{case.error.__name__} was expected"
    for number, (left, right) in enumerate(zip(found, expected, strict=True)):
        if not close(left, right):
            return f"result {number} of {len(found)} is {left.ravel()[:4]}, Horovod's {right.ravel()[:4]}"
    return ""


def try_rows(*wanted: str, without: Collection[str] = ()) -> None:
    """Try the plain call with both compressors, eagerly and traced; then the arguments take turns in these.

    Arguments ``without`` are left out.
    """
    known, rows = functions(), table()
    problems = []
    turns = itertools.cycle((graph, make) for make in LOSSLESS for graph in (True, False))
    for name in wanted:
        run, arguments = rows[name]
        for argument, cases in arguments.items():
            for case in () if argument in without else cases:
                for _ in range(4 if argument == "compression" else 1):
                    graph, make = next(turns)
                    problem = tried(known[name], run, case, graph, make)
                    if any(gather(problem)):
                        how = f"{'traced' if graph else 'eager'}, {make()!r}"
                        problem = problem or "another rank fails"
                        problems.append(f"{name}, {argument}, {case.arguments}, {how}: {problem}")
    assert not problems, "\n\n".join(problems)


@scenario("mpirun 2")
def the_table_has_every_function_and_argument() -> None:
    """A new one fails here, until somebody has said what becomes of it."""
    known, rows = functions(), table()
    assert sorted(known) == sorted(rows)
    for name, (_, arguments) in rows.items():
        assert sorted(arguments) == sorted(inspect.signature(known[name]).parameters), name
    assert set(rows) == {*COLLECTIVES, *TAPES, *OPTIMIZERS, *FIRST_OPTIMIZERS, *KERAS_OPTIMIZERS}


@scenario("mpirun 2", long=["mpirun 3"], limit=600)
def arguments_of_collectives() -> None:
    try_rows(*COLLECTIVES)


@scenario(long=["mpirun 2", "mpirun 3"], limit=600)
def arguments_of_tapes() -> None:
    try_rows(TAPES[0])


@scenario("mpirun 2")
def arguments_that_only_partial_tapes_have() -> None:
    try_rows(TAPES[1], without=set(table()[TAPES[0]][1]) - {"compression"})


@scenario(long=["mpirun 2", "mpirun 3"], limit=600)
def arguments_of_partial_tapes() -> None:
    try_rows(TAPES[1])


@scenario("mpirun 2", long=["mpirun 3"], limit=600)
def arguments_of_optimizers() -> None:
    try_rows(*OPTIMIZERS)


@scenario(long=["mpirun 2", "mpirun 3"], limit=600)
def arguments_of_optimizers_of_the_first_api() -> None:
    try_rows(*FIRST_OPTIMIZERS)


@scenario(long=["mpirun 2", "mpirun 3"], limit=600)
def arguments_of_optimizers_of_keras() -> None:
    try_rows(*KERAS_OPTIMIZERS)
