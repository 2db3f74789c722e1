"""An exchange as TensorFlow operations: Horovod's collectives, and calls of Python between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvd_compress.drivers.initialization import is_elastic
from hvd_compress.drivers.nodes import sets_of
from hvd_compress.drivers.tensorflow.turns import TURNS
from hvd_compress.exchange import AllGather, AllToAll, Array, Broadcast, ReduceScatter
from hvd_compress.kernels import Float32
from hvd_compress.runtime.agreement import marks_of
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.graph_step import TracedBucket, TracedCall
from hvd_compress.runtime.graph_transport import CollectiveSpec
from hvd_compress.validation import warn_of_range

SMALL = 65536
"""Gradients of up to so many elements are concatenated before they are checked; larger ones not, for the copy."""

RECOGNIZED = "HorovodAllreduce"
"""A part of the names of all collectives. ``hvd.elastic.run`` knows by this word in an error's message that a worker
was lost, and takes any other unknown error for the end of the training, without a word; the message has the name of
the operation that failed, and not its kind (Horovod 0.28.1)."""

CONDITIONALS = ("If", "StatelessIf")
"""The types of what ``tf.cond`` makes (TensorFlow 2.18)."""

_OPS = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}


class Graphs:
    """What must be known of the calls that a graph has already, whoever's they are. Operations are held by name, for
    they keep their graph alive."""

    def __init__(self) -> None:
        self._named: WeakKeyDictionary[Any, dict[str, list[object]]] = WeakKeyDictionary()
        self._begun: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def label(self, content: str, owner: object) -> str:
        """Return what begins the names of an owner's collectives in the graph that is being made: the same for all
        graphs that have the same calls of such ``content``, as Horovod's own names are."""
        if tf.executing_eagerly():
            return f"{content}.0"
        owners = self._named.setdefault(tf.compat.v1.get_default_graph(), {}).setdefault(content, [])
        if owner not in owners:
            owners.append(owner)
        return f"{content}.{owners.index(owner)}"

    def one_by_one(self, begin: Callable[[], Any]) -> Any:
        """Lay out what a step begins with, after what the calls do that the graph has already. The workers' agreements
        are eager collectives, which have no names."""
        if tf.executing_eagerly():
            return begin()
        graph = tf.compat.v1.get_default_graph()
        before = self._begun.get(graph)
        with tf.control_dependencies([graph.get_operation_by_name(before)] if before else []):
            begun = begin()
        self._begun[graph] = begun.op.name
        return begun


GRAPHS = Graphs()


class Exchanges:
    """Lays out an engine's exchanges. TensorFlow passes arrays to Python and takes them back without copying, where
    they begin at a multiple of 64 bytes."""

    def __init__(self, engine: GraphEngine, process_set: Any) -> None:
        self._engine = engine
        self._process_set = process_set
        self._sets = sets_of(engine.topology)
        self._rounds: dict[TracedBucket, dict[str, list[CollectiveSpec]]] = {}

    def lay_out(
        self,
        traced: TracedBucket,
        gradients: Sequence[Any],
        shapes: Sequence[Any],
        scale: Callable[[], float],
        call: TracedCall | None,
        finite: Any,
        plain: Any = None,
        ticket: Any = None,
        *,
        label: str,
    ) -> list[Any]:
        """Lay out one bucket's exchange: from its gradients to their means times what ``scale`` returns. ``finite`` is
        a bool tensor about gradients outside the buckets; without ``call``, the exchange stands alone. ``plain`` is one
        about the step: whether there is no exchange in it. ``ticket`` is what ``begin`` returned. ``label`` begins the
        names of the collectives."""
        engine = self._engine
        if traced not in self._rounds:
            self._rounds[traced] = engine.plans.of(traced.bucket)
        plans = self._rounds[traced] if call is not None else self._rounds.pop(traced)
        flat = [_flat(gradient, p.name) for gradient, p in zip(gradients, traced.members, strict=True)]
        inputs = flat if finite is None else [*flat, finite]
        told = finite is not None
        branches = [
            partial(
                self._exchange, _Launch(engine, call, traced, told, plan), traced, rounds, inputs, scale, ticket, label
            )
            for plan, rounds in plans.items()
        ]
        if len(branches) == 1 and plain is None:
            means = branches[0]()
        else:
            with tf.control_dependencies(inputs):  # the step before is over
                choose = partial(_chosen, engine, traced, list(plans))
                if plain is None:
                    chosen = choose()
                else:
                    chosen = tf.cond(plain, partial(tf.constant, len(branches), tf.int32), choose)
                    branches.append(partial(_same, flat))
            means = tf.switch_case(chosen, branches)
            means = means if isinstance(means, (list, tuple)) else [means]
        outputs = []
        for mean, gradient, shape in zip(means, gradients, shapes, strict=True):
            outputs.append(tf.cast(tf.reshape(mean, shape), gradient.dtype))
        return outputs

    def _exchange(
        self,
        launch: _Launch,
        traced: TracedBucket,
        rounds: Sequence[CollectiveSpec],
        inputs: list[Any],
        scale: Callable[[], float],
        ticket: Any,
        label: str,
    ) -> list[Any]:
        """Lay out one plan: flat gradients (and ``finite``) to flat means."""
        engine = self._engine
        name = ".".join(filter(None, (RECOGNIZED, label, traced.bucket.name, launch.plan)))
        sent = _sending(launch, inputs, rounds[0].dtype, rounds[0], traced, engine)
        for number, current in enumerate(rounds):
            result = self._collective(current, sent, f"{name}.round{number}")
            if number + 1 < len(rounds):
                following = rounds[number + 1]
                advance = partial(_advance, engine, traced, following)
                sent = _sending(advance, [result], following.dtype, following, traced, engine)
        types = [tf.float32] * len(traced.members)
        land = partial(_land, engine, traced, scale)
        *means, flush = _python(land, [result], [*types, tf.bool], "hvd_compress_land", ticket)
        if launch.call is not None and engine.can_flush(traced):
            means = tf.cond(flush, partial(self._flush, traced, scale, name, types, [result]), partial(_same, means))
            means = list(means) if isinstance(means, (list, tuple)) else [means]
        return list(means)

    def begin(self, call: TracedCall, plain: Any = None) -> Any:
        """Lay out what a step begins with, the workers' agreement: its ticket, a tensor that is there when they have
        agreed, and that what ends the step takes. ``plain`` as in ``lay_out``: then there is none."""

        def agree() -> Any:
            [ticket] = _python(partial(self._engine.begin, call), [], [tf.float32], "hvd_compress_begin")
            ticket.set_shape([1])
            return ticket

        return GRAPHS.one_by_one(agree if plain is None else partial(tf.cond, plain, partial(tf.zeros, [1]), agree))

    def finite(self, gradients: Sequence[Any]) -> Any:
        """Return whether all of these, which Horovod reduces itself, are finite on this rank; None: there are none."""
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
        values = [value for value in values if value.dtype.is_floating]
        small: dict[Any, list[Any]] = {}
        checks = []
        for value in values:
            elements = value.shape.num_elements()
            if elements is not None and elements <= SMALL:
                small.setdefault(value.dtype, []).append(tf.reshape(value, [-1]))
            else:
                checks.append(tf.reduce_all(tf.math.is_finite(value)))
        checks.extend(tf.reduce_all(tf.math.is_finite(tf.concat(parts, 0))) for parts in small.values())
        return tf.reduce_all(tf.stack(checks)) if checks else None

    def with_momentum(
        self,
        call: TracedCall,
        name: str,
        reduced: Any,
        variable: Any,
        factor: Callable[[], float],
        ticket: Any,
        *,
        compressed: bool,
    ) -> Any:
        """Lay out the momentum of a parameter's mean times ``factor()``; see ``GraphEngine.with_momentum``."""
        momentum = self._engine.momentum
        inputs = [tf.reshape(tf.cast(reduced, tf.float32), [-1])]
        if momentum is not None and momentum.weight_decay:
            inputs.append(tf.reshape(tf.cast(tf.convert_to_tensor(variable), tf.float32), [-1]))
        advance = partial(_momentum, self._engine, call, name, factor, compressed)
        [result] = _python(advance, inputs, [tf.float32], "hvd_compress_momentum", ticket)
        return tf.cast(tf.reshape(result, tf.shape(reduced)), reduced.dtype)

    def _collective(self, current: CollectiveSpec, sent: Any, name: str) -> Any:
        topology, rank = self._engine.topology, self._engine.rank
        if topology.alone(current.scope, rank):  # the engine knows the result
            return sent[0] if current.kind is Broadcast else sent
        members = topology.members(current.scope, rank)
        # the number of all workers may have changed since the sets were made
        process_set = self._process_set if len(members) == topology.workers else self._sets[members]
        keywords = {"name": name, "ignore_name_scope": True, "process_set": process_set}
        if current.kind is AllGather:
            return hvd.allgather(sent, **keywords)
        if current.kind is Broadcast and self._engine.elastic:
            return hvd.allgather(sent, **keywords)  # nothing comes from all but the root
        if current.kind is Broadcast:
            values, root = sent
            branches = [
                partial(hvd.broadcast, values, process_set.ranks[place], **keywords) for place in range(len(members))
            ]
            return tf.switch_case(root, branches)
        if current.kind is ReduceScatter:
            return hvd.reducescatter(sent, op=hvd.Sum, **keywords)
        if current.kind is AllToAll:
            return hvd.alltoall(sent, **keywords)
        return hvd.allreduce(sent, op=_OPS[current.op], **keywords)

    def _flush(
        self, traced: TracedBucket, scale: Callable[[], float], name: str, types: list[Any], after: list[Any]
    ) -> Any:
        """All-reduce what the step leaves in the memory, and add it to the mean."""
        engine = self._engine
        [rest] = _python(partial(_rest, engine, traced), after, [tf.float32])
        rest.set_shape([None])
        total = hvd.allreduce(
            rest, op=hvd.Sum, name=f"{name}.flush", ignore_name_scope=True, process_set=self._process_set
        )
        return _python(partial(_flushed, engine, traced, scale), [total], types)


class CallOrder:
    """Keeps the calls in one graph that reduce the same parameters one after the other: each has the memories to
    itself. Operations are held by name, for they keep their graph alive."""

    def __init__(self) -> None:
        self._calls: WeakKeyDictionary[Any, list[tuple[set[str], list[str], int | None]]] = WeakKeyDictionary()

    def earlier(self, parameters: set[str]) -> list[Any]:
        """Return the last operations of the calls in this graph that share parameters with these."""
        if tf.executing_eagerly():
            return []
        graph = tf.compat.v1.get_default_graph()
        found: list[Any] = []
        for taken, names, count in self._calls.get(graph, ()):
            if taken.isdisjoint(parameters):
                continue
            found += map(graph.get_operation_by_name, names)
            if count is not None:
                found += [op for op in graph.get_operations()[count:] if op.type in CONDITIONALS]
        return found

    def add(self, parameters: set[str], outputs: Sequence[Any], *, goes_on: bool) -> None:
        """Remember a call of this graph, and its outputs. Whether it ``goes_on`` in the branches in which Horovod will
        reduce its gradients: then the calls after it wait for all conditionals that come before them."""
        if not tf.executing_eagerly():
            graph = tf.compat.v1.get_default_graph()
            count = len(graph.get_operations()) if goes_on else None
            self._calls.setdefault(graph, []).append((parameters, [output.op.name for output in outputs], count))


class _Launch:
    """Starts an exchange, when the graph calls it."""

    def __init__(
        self, engine: GraphEngine, call: TracedCall | None, traced: TracedBucket, told: bool, plan: str
    ) -> None:
        self.call = call
        self.plan = plan
        self._engine = engine
        self._traced = traced
        self._told = told

    def __call__(self, *inputs: Array) -> Array:
        finite = bool(inputs[-1]) if self._told else True
        pieces = inputs[:-1] if self._told else inputs
        return self._engine.launch(self.call, self._traced, self.plan, pieces, finite)


def _flat(gradient: Any, name: str) -> Any:
    """Return a gradient flat, as float32; say so when the program runs if it does not fit."""
    flat = tf.reshape(tf.cast(gradient, tf.float32), [-1])
    if gradient.dtype != tf.float64:
        return flat

    beyond = tf.reduce_any(tf.math.is_inf(flat) & tf.math.is_finite(tf.reshape(gradient, [-1])))
    with tf.control_dependencies(
        [tf.cond(beyond, partial(_scalar, partial(_warn, name), tf.bool), partial(tf.constant, False))]
    ):
        return tf.identity(flat)


def _warn(name: str) -> Any:
    warn_of_range([name])
    return np.bool_(True)


def comparable(text: str, name: str) -> Any:
    """Return a token for Horovod to reduce, which ``compared`` takes then: it tells whether all ranks have this text.

    It is no constant: TensorFlow would reduce that already when it optimizes the graph, one after the other.
    """
    told = np.array([1, *marks_of(text)], np.float32)
    [token] = _python(lambda: told, [], [tf.float32], name)
    token.set_shape(told.shape)
    return token


def compared(token: Any, exchange: Callable[[], Any], complaint: str) -> Any:
    """Return what ``exchange`` does. An error with this ``complaint`` takes its place, on every rank and before
    anything else is sent, if the reduced ``token`` says that the ranks' texts differ."""
    with tf.device("/cpu:0"):
        alike = _python(partial(_compare, complaint), [token], [tf.bool])
        with tf.control_dependencies(alike):
            return exchange()


def _compare(complaint: str, token: Array) -> Array:
    """The first element is what becomes of ones, whatever the op and the factors are: where all ranks have the same,
    the others are that, or nothing. A factor that is nothing or infinite leaves nothing to tell, nor to differ."""
    one, marks = token[0], token[1:]
    off = np.minimum(abs(marks), abs(marks - one))
    if np.isfinite(one) and (off > 1e-5 * abs(one)).any():
        raise ValueError(complaint)
    return np.array(True)


def _python(
    function: Callable[..., Any], inputs: list[Any], types: list[Any], name: str | None = None, ticket: Any = None
) -> list[Any]:
    """Lay out a call of Python. The graph holds the ``ticket`` until then.

    TensorFlow would run the calls of a function in the order in which they were traced, and a bucket would wait until
    the one before it is done; ``TURNS`` says what waits for what.
    """
    if ticket is not None:
        function, inputs = partial(_without_last, function), [*inputs, ticket]
    if is_elastic():
        function = partial(_unmistakable, function)
    outputs = tf.numpy_function(function, inputs, types, name=name)
    if not tf.executing_eagerly():
        TURNS.add(outputs[0].op)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _scalar(function: Callable[[], Any], dtype: Any, name: str | None = None) -> Any:
    """Lay out a call of Python that returns a number."""
    [number] = _python(function, [], [dtype], name)
    number.set_shape([])
    return number


def _without_last(function: Callable[..., Any], *inputs: Array) -> Any:
    return function(*inputs[:-1])


def _unmistakable(function: Callable[..., Any], *inputs: Array) -> Any:
    """Return what ``function`` does. Its errors are such that ``hvd.elastic.run`` does not take them for the end of
    the training (see ``RECOGNIZED``): TensorFlow has a name of its own for a ValueError, and calls most others
    unknown."""
    try:
        return function(*inputs)
    except tf.errors.OpError:  # of a collective
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _sending(
    function: Callable[..., Array],
    inputs: list[Any],
    dtype: Any,
    current: CollectiveSpec,
    traced: TracedBucket,
    engine: GraphEngine,
) -> Any:
    """Lay out a call of Python that returns what a collective takes; for a broadcast, the root too.

    Horovod's own broadcast has the root in the graph. One branch for every root would do for as many workers as there
    are; where their number may change, workers gather what the root sends, and nothing from the others.
    """
    if current.kind is Broadcast and engine.elastic:
        function = partial(_if_root, engine, traced, function)
    if current.kind is not Broadcast or engine.elastic:
        [sent] = _python(function, inputs, [tf.as_dtype(dtype)], "hvd_compress_send")
        sent.set_shape([None, None] if current.kind in (ReduceScatter, AllToAll) else [None])
        return sent

    def with_root(*arrays: Array) -> tuple[Array, Any]:
        return function(*arrays), np.int32(engine.root(traced))

    sent, root = _python(with_root, inputs, [tf.as_dtype(dtype), tf.int32], "hvd_compress_send")
    sent.set_shape([None])
    root.set_shape([])
    return sent, root


def _momentum(
    engine: GraphEngine, call: TracedCall, name: str, factor: Callable[[], float], compressed: bool, *inputs: Array
) -> Float32:
    weight = inputs[1] if len(inputs) > 1 else None
    return engine.with_momentum(call, name, inputs[0], weight, factor(), compressed=compressed)


def _if_root(engine: GraphEngine, traced: TracedBucket, function: Callable[..., Array], *arrays: Array) -> Array:
    values = function(*arrays)
    return values if engine.root(traced) == engine.rank else values[:0]


class PlainSteps:
    """Counts in the graph the steps in which Horovod reduces all gradients itself: Python is asked once for several."""

    def __init__(self, engine: GraphEngine) -> None:
        self._engine = engine
        with tf.init_scope(), tf.device("/cpu:0"):
            self._left = tf.Variable(0, dtype=tf.int64, trainable=False, name="hvd_compress_plain_steps")
        engine.plain_left = lambda: int(self._left.numpy())

    def lay_out(self, nbytes: int) -> Any:
        """Lay out a bool tensor: whether the step is one of these. ``nbytes`` are those of its gradients."""
        return tf.cond(self._left > 0, self._go_on, partial(self._ask, nbytes))

    def _go_on(self) -> Any:
        return self._left.assign_sub(1, read_value=True) >= 0

    def _ask(self, nbytes: int) -> Any:
        steps = _scalar(partial(_plain_steps, self._engine, nbytes), tf.int64)
        with tf.control_dependencies([self._left.assign(tf.maximum(steps - 1, 0), read_value=False)]):
            return steps > 0


def _plain_steps(engine: GraphEngine, nbytes: int) -> Any:
    return np.int64(engine.plain_steps(nbytes))


def _chosen(engine: GraphEngine, traced: TracedBucket, plans: Sequence[str]) -> Any:
    return _scalar(partial(_choose, engine, traced, plans), tf.int32)


def _choose(engine: GraphEngine, traced: TracedBucket, plans: Sequence[str]) -> Any:
    return np.int32(plans.index(engine.plan(traced)))


def _advance(engine: GraphEngine, traced: TracedBucket, following: CollectiveSpec, result: Array) -> Array:
    return engine.advance(traced, result, following)


def _land(engine: GraphEngine, traced: TracedBucket, scale: Callable[[], float], result: Array) -> list[Any]:
    # where there is but one worker, the graph that Horovod lays out for any number leaves gradients as they are
    mean, flush = engine.land(traced, result, scale(), used=traced.standalone or engine.workers > 1)
    return [*_pieces(traced, mean), np.bool_(flush)]


def _rest(engine: GraphEngine, traced: TracedBucket, _: Array) -> Float32:
    return engine.rest(traced)


def _flushed(engine: GraphEngine, traced: TracedBucket, scale: Callable[[], float], total: Float32) -> list[Float32]:
    return _pieces(traced, engine.flushed(traced, total, scale()))


def _pieces(traced: TracedBucket, mean: Float32) -> list[Float32]:
    return traced.parameters.cut(mean)


def _same(means: list[Any]) -> list[Any]:
    return [tf.identity(mean) for mean in means]
