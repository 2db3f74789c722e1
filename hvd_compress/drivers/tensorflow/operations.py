"""An exchange as TensorFlow operations: Horovod's collectives, and calls of Python between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvd_compress.drivers.nodes import sets_of
from hvd_compress.drivers.tensorflow.call_order import GRAPHS
from hvd_compress.drivers.tensorflow.python_calls import RECOGNIZED, python, scalar
from hvd_compress.exchange import AllGather, AllToAll, Array, Broadcast, ReduceScatter
from hvd_compress.kernels import Float32
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.graph_step import TracedBucket, TracedCall
from hvd_compress.runtime.graph_transport import CollectiveSpec
from hvd_compress.validation import warn_of_range

SMALL = 65536
"""Gradients of up to so many elements are concatenated before they are checked; larger ones not, for the copy."""

_OPS = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}


@dataclass(frozen=True, eq=False)
class Reduced:
    """What all parts of one call's layout have in common."""

    label: str
    """Begins the names of its collectives."""
    factor: Callable[[], float]
    """Returns what means are multiplied by."""
    call: TracedCall | None = None
    """None: the exchange of a tensor that stands alone."""
    plain: Any = None
    """A bool tensor: whether Horovod reduces the gradients itself in this step; None: it never does."""
    ticket: Any = None
    """A tensor that is there when the workers have agreed, see ``Exchanges.begin``; None: there is nothing to agree
    on."""


class Exchanges:
    """Lays out an engine's exchanges. TensorFlow passes arrays to Python and takes them back without copying, where
    they begin at a multiple of 64 bytes."""

    def __init__(self, engine: GraphEngine, process_set: Any) -> None:
        self._engine = engine
        self._process_set = process_set
        self._sets = sets_of(engine.topology)
        self._rounds: dict[TracedBucket, dict[str, list[CollectiveSpec]]] = {}

    def lay_out(
        self, of: Reduced, traced: TracedBucket, gradients: Sequence[Any], shapes: Sequence[Any], finite: Any = None
    ) -> list[Any]:
        """Lay out one bucket's exchange: from its gradients to their means times the factor. ``finite`` is a bool
        tensor about gradients outside the buckets."""
        engine = self._engine
        if traced not in self._rounds:
            self._rounds[traced] = engine.plans.of(traced.bucket)
        plans = self._rounds[traced] if of.call is not None else self._rounds.pop(traced)
        flat = [_flat(gradient, p.name) for gradient, p in zip(gradients, traced.members, strict=True)]
        inputs = flat if finite is None else [*flat, finite]
        told = finite is not None
        branches = [
            partial(self._exchange, of, _Launch(engine, of.call, traced, told, plan), traced, rounds, inputs)
            for plan, rounds in plans.items()
        ]
        if len(branches) == 1 and of.plain is None:
            means = branches[0]()
        else:
            with tf.control_dependencies(inputs):  # the step before is over
                choose = partial(_chosen, engine, traced, list(plans))
                if of.plain is None:
                    chosen = choose()
                else:
                    chosen = tf.cond(of.plain, partial(tf.constant, len(branches), tf.int32), choose)
                    branches.append(partial(_same, flat))
            means = tf.switch_case(chosen, branches)
            means = means if isinstance(means, (list, tuple)) else [means]
        outputs = []
        for mean, gradient, shape in zip(means, gradients, shapes, strict=True):
            outputs.append(tf.cast(tf.reshape(mean, shape), gradient.dtype))
        return outputs

    def _exchange(
        self, of: Reduced, launch: _Launch, traced: TracedBucket, rounds: Sequence[CollectiveSpec], inputs: list[Any]
    ) -> list[Any]:
        """Lay out one plan: flat gradients (and ``finite``) to flat means."""
        engine = self._engine
        name = ".".join(filter(None, (RECOGNIZED, of.label, traced.bucket.name, launch.plan)))
        sent = _sending(launch, inputs, rounds[0].dtype, rounds[0], traced, engine)
        for number, current in enumerate(rounds):
            result = self._collective(current, sent, f"{name}.round{number}")
            if number + 1 < len(rounds):
                following = rounds[number + 1]
                advance = partial(_advance, engine, traced, following)
                sent = _sending(advance, [result], following.dtype, following, traced, engine)
        types = [tf.float32] * len(traced.members)
        land = partial(_land, engine, traced, of.factor)
        *means, flush = python(land, [result], [*types, tf.bool], "hvd_compress_land", of.ticket)
        if of.call is not None and engine.can_flush(traced):
            means = tf.cond(
                flush, partial(self._flush, traced, of.factor, name, types, [result]), partial(_same, means)
            )
            means = list(means) if isinstance(means, (list, tuple)) else [means]
        return list(means)

    def begin(self, call: TracedCall, plain: Any = None) -> Any:
        """Lay out what a step begins with, the workers' agreement: its ticket, a tensor that is there when they have
        agreed, and that what ends the step takes. ``plain`` as in ``Reduced``: then there is none."""

        def agree() -> Any:
            [ticket] = python(partial(self._engine.begin, call), [], [tf.float32], "hvd_compress_begin")
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

    def with_momentum(self, of: Reduced, name: str, mean: Any, variable: Any, *, compressed: bool) -> Any:
        """Lay out the momentum of a parameter's mean times the factor; see ``GraphEngine.with_momentum``."""
        momentum = self._engine.momentum
        inputs = [tf.reshape(tf.cast(mean, tf.float32), [-1])]
        if momentum is not None and momentum.weight_decay:
            inputs.append(tf.reshape(tf.cast(tf.convert_to_tensor(variable), tf.float32), [-1]))
        assert of.call is not None
        advance = partial(_momentum, self._engine, of.call, name, of.factor, compressed)
        [result] = python(advance, inputs, [tf.float32], "hvd_compress_momentum", of.ticket)
        return tf.cast(tf.reshape(result, tf.shape(mean)), mean.dtype)

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
        [rest] = python(partial(_rest, engine, traced), after, [tf.float32])
        rest.set_shape([None])
        total = hvd.allreduce(
            rest, op=hvd.Sum, name=f"{name}.flush", ignore_name_scope=True, process_set=self._process_set
        )
        return python(partial(_flushed, engine, traced, scale), [total], types)


class _Launch:
    """Starts an exchange, when the graph calls it."""

    def __init__(
        self, engine: GraphEngine, call: TracedCall | None, traced: TracedBucket, told: bool, plan: str
    ) -> None:
        self._call = call
        self.plan = plan
        self._engine = engine
        self._traced = traced
        self._told = told

    def __call__(self, *inputs: Array) -> Array:
        finite = bool(inputs[-1]) if self._told else True
        pieces = inputs[:-1] if self._told else inputs
        return self._engine.launch(self._call, self._traced, self.plan, pieces, finite)


def _flat(gradient: Any, name: str) -> Any:
    """Return a gradient flat, as float32; say so when the program runs if it does not fit."""
    flat = tf.reshape(tf.cast(gradient, tf.float32), [-1])
    if gradient.dtype != tf.float64:
        return flat

    beyond = tf.reduce_any(tf.math.is_inf(flat) & tf.math.is_finite(tf.reshape(gradient, [-1])))
    with tf.control_dependencies(
        [tf.cond(beyond, partial(scalar, partial(_warn, name), tf.bool), partial(tf.constant, False))]
    ):
        return tf.identity(flat)


def _warn(name: str) -> Any:
    warn_of_range([name])
    return np.bool_(True)


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
        [sent] = python(function, inputs, [tf.as_dtype(dtype)], "hvd_compress_send")
        sent.set_shape([None, None] if current.kind in (ReduceScatter, AllToAll) else [None])
        return sent

    def with_root(*arrays: Array) -> tuple[Array, Any]:
        return function(*arrays), np.int32(engine.root(traced))

    sent, root = python(with_root, inputs, [tf.as_dtype(dtype), tf.int32], "hvd_compress_send")
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


def _chosen(engine: GraphEngine, traced: TracedBucket, plans: Sequence[str]) -> Any:
    return scalar(partial(_choose, engine, traced, plans), tf.int32)


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
