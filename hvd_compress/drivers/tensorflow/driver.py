"""Horovod under TensorFlow 2: lays exchanges out in the graph, as Horovod's own collectives between Python calls.

Horovod calls ``compress`` while TensorFlow traces, for one gradient after the other, each inside the branch of a
``tf.cond``. At the first of a call's gradients the driver looks up all of them (see ``horovod_internals``) and lays out
the exchanges of the whole call in the graph around those branches: gradients fused to buckets in reverse order, or one
bucket for each of the caller's groups. Then ``compress`` returns tokens, and ``decompress`` the exchanges' outputs.
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from weakref import WeakValueDictionary

import horovod.tensorflow as hvd
import tensorflow as tf
from tensorflow.python.eager import context

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.initialization import check_elastic, guard_initialization, initialization, is_elastic
from hvd_compress.drivers.joining import guard_join
from hvd_compress.drivers.nodes import agree
from hvd_compress.drivers.tensorflow.call_order import GRAPHS, CallOrder
from hvd_compress.drivers.tensorflow.horovod_internals import HorovodCall, OptimizerCall, find_call
from hvd_compress.drivers.tensorflow.operations import Exchanges, Reduced
from hvd_compress.drivers.tensorflow.parameters import (
    VariableNames,
    check_dtype,
    compressed_shapes,
    handed_over,
    nbytes,
    repeated,
    weights,
)
from hvd_compress.drivers.tensorflow.plain_steps import PlainSteps
from hvd_compress.drivers.tensorflow.python_calls import comparable, compared
from hvd_compress.drivers.tensorflow.reduction import Reduction
from hvd_compress.drivers.tensorflow.turns import TURNS
from hvd_compress.exchange import Array
from hvd_compress.kernels import UInt8
from hvd_compress.phased import phases
from hvd_compress.runtime.agreement import NAMELESS, check_proposals, digest_of, digest_of_sizes, disagreement, identity
from hvd_compress.runtime.bucketing import Parameter, plan_buckets
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.graph_step import TracedCall
from hvd_compress.runtime.transport import mpi_ranks
from hvd_compress.runtime.world import World
from hvd_compress.topology import Topology

# As under PyTorch: names are one space for the process, and a process set's ranks number together, anew when Horovod is
# initialized again. By initialization, process set, and what is reduced: of two models a rank may trace either first.
_labels: defaultdict[tuple[int, int, str], itertools.count[int]] = defaultdict(itertools.count)
# By parameters, the driver that began to reduce them last.
_latest: WeakValueDictionary[tuple[Parameter, ...], TensorFlowDriver] = WeakValueDictionary()

_gathering = threading.Lock()  # eager collectives have no names

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Layout:
    """What has been laid out for one call of Horovod's: outputs by the gradients' places in it. ``coming`` are the
    places of those that are still to be handed over, in Horovod's order."""

    gradients: Any
    coming: list[int]
    reduced: Reduced
    outputs: dict[int, Any] = field(default_factory=dict)

    def hand_over(self, gradient: Any) -> int:
        """Return the place of a gradient that is handed over now. One tensor may be the gradient of several variables,
        as that of a sum is: it comes once for each."""
        index = next(index for index in self.coming if self.gradients[index] is gradient)
        self.coming.remove(index)
        return index

    def sent_after_agreement(self, gradient: Any) -> Any:
        """Return a gradient that Horovod reduces itself, but not before the workers have agreed: what one of them has
        sent when another finds that they do not would be waited for."""
        if self.reduced.ticket is None:
            return gradient
        with tf.control_dependencies([self.reduced.ticket]):
            return tf.identity(gradient)


@dataclass(frozen=True, eq=False)
class _Place:
    """A gradient's context between compress and decompress."""

    layout: _Layout
    index: int


@dataclass(frozen=True, eq=False)
class _Uncompressed:
    """The context of a gradient that Horovod reduces itself, where its mean gets a momentum."""

    layout: _Layout
    variable: Any


@dataclass(frozen=True, eq=False)
class _Standalone:
    """The context of a tensor compressed outside an optimizer: what exchanges it, and what is said instead if the ranks
    differ."""

    exchange: Callable[[], Any]
    complaint: str


class TensorFlowDriver:
    """Runs one compressor in all the calls that Horovod makes of it."""

    def __init__(self, compressor: Compressor) -> None:
        if compressor.memory_unit == "update":
            raise ValueError(
                f"{compressor!r} needs the optimizer's learning rate, which TensorFlow does not tell where gradients "
                "are reduced: leave out memory_unit"
            )
        compressor.runtime.refuse_loss_scale("the driver of TensorFlow")
        guard_join(hvd, compressor, _refuse_join)
        check_elastic(compressor)
        guard_initialization()
        self._compressor = compressor
        self._engine: GraphEngine | None = None
        self._exchanges: Exchanges | None = None
        self._plain: PlainSteps | None = None
        self._process_set: Any = None
        self._layout: _Layout | None = None
        self._names = VariableNames()
        self._order = CallOrder()
        self._refused: ValueError | None = None  # why the workers did not agree on nodes
        self._short_lived = 0  # compressors that served the same parameters just before, for one step each

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def compress(self, tensor: Any) -> tuple[Any, _Place | _Uncompressed | _Standalone | None]:
        """Take a gradient, or a tensor that ``hvd.allreduce`` was given; Horovod's first hook."""
        if not tf.is_tensor(tensor):
            raise TypeError(f"{self._compressor!r} already serves TensorFlow; make another compressor for other work")
        call = find_call(tensor)
        self._check(call)
        reduction = Reduction(
            call.op, call.prescale_factor, call.postscale_factor, call.process_set, call.ignore_name_scope
        )
        if call.optimizer is None:
            return self._standalone(tensor, call, reduction)
        if not is_elastic() and (not call.process_set.included() or call.process_set.size() == 1):
            return tensor, None  # the branch that is being traced will never run
        gradients = call.optimizer.gradients
        if self._layout is None or self._layout.gradients is not gradients:
            self._layout = self._lay_out(call.optimizer, reduction)
        TURNS.join()
        layout = self._layout
        index = layout.hand_over(tensor)
        if not layout.coming:
            self._layout = None  # it keeps a whole graph alive
        assert self._engine is not None
        if index not in layout.outputs:
            tensor = layout.sent_after_agreement(tensor)
            if self._engine.momentum is None:
                return tensor, None
            return tensor, _Uncompressed(layout, call.optimizer.variables[index])
        name = layout.reduced.label.replace(".", "_")
        token = partial(tf.ones, [1], tensor.dtype, name=f"{name}_token{index}")
        place = _Place(layout, index)
        if layout.reduced.plain is None:
            return token(), place
        return tf.cond(layout.reduced.plain, partial(tf.reshape, tensor, [-1]), token), place

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def decompress(self, tensor: Any, ctx: _Place | _Uncompressed | _Standalone) -> Any:
        """Return the result; Horovod's second hook. ``tensor`` is the reduced token."""
        if isinstance(ctx, _Standalone):
            return compared(tensor, ctx.exchange, ctx.complaint)
        if isinstance(ctx, _Uncompressed):
            assert self._exchanges is not None
            name = self._names[ctx.variable]
            return self._exchanges.with_momentum(ctx.layout.reduced, name, tensor, ctx.variable, compressed=False)
        output = ctx.layout.outputs[ctx.index]
        plain = ctx.layout.reduced.plain
        if plain is None:
            return output
        return tf.cond(plain, partial(tf.reshape, tensor, output.shape), partial(tf.identity, output))

    def bind(self, optimizer: Any) -> None:
        """Do nothing: a call's variables are looked up where Horovod makes it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state; arrays are NumPy's."""
        if self._engine is None:
            return {}
        if self._engine.world_number != initialization():
            self._engine.drop()
        with tf.init_scope():
            tf.constant([0.0])  # when a tensor goes, TensorFlow lets go of the arrays that it has done with before
        return self._engine.state_dict()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to what ``state_dict`` returned; a step that is under way leaves no trace."""
        if self._engine is None:
            self._compressor.runtime.pending_state = state
        else:
            self._engine.restore(state)

    def _check(self, call: HorovodCall) -> None:
        name = type(self._compressor).__name__
        if "reducescatter" in call.function:
            raise NotImplementedError(f"{name} compresses all-reduces, not hvd.{call.function}: pass no compression")
        if call.op == hvd.Adasum:
            raise ValueError(
                "op=hvd.Adasum combines gradients in a way that needs them whole; use op=hvd.Average or hvd.Sum with "
                f"{name}"
            )
        if call.op not in (hvd.Average, hvd.Sum):
            raise ValueError(f"op must be hvd.Average or hvd.Sum with {name}, got {call.op}")
        if call.optimizer is not None and call.optimizer.scaled:
            self._check_unit()
        wanted = self._compressor.process_set
        if wanted is not None and wanted is not call.process_set:
            raise ValueError(
                f"the compressor's process_set ({wanted}) is not the call's ({call.process_set}); leave it out, the "
                "call's is found"
            )

    def _check_unit(self) -> None:
        """Raise ValueError if the compressor would have to know the loss scale that gradients were multiplied by."""
        compressor, momentum = self._compressor, self._compressor.mean_momentum()
        needs = {
            "clip": compressor.gradient_limit(1) is not None,
            "weight_decay": momentum is not None and momentum.weight_decay > 0,
        }
        if any(needs.values()):
            raise ValueError(
                f"{compressor!r} gets gradients that LossScaleOptimizer has multiplied by its scale, and is not told "
                f"of it: leave out {' and '.join(name for name, need in needs.items() if need)}, or train without a "
                "loss scale (mixed_bfloat16 needs none)"
            )

    def _serve(self, process_set: Any, content: str) -> Exchanges:
        """Return the engine's exchanges. The engine is made when the first exchange is laid out, and named after the
        ``content`` of that, which is the same on all ranks."""
        if self._exchanges is None:
            if self._refused is not None:
                raise ValueError(f"{self._refused}; after that, make a new compressor on every rank") from self._refused
            number = process_set.process_set_id
            label = f"{_label(process_set, content)}.{next(_labels[initialization(), number, content])}"
            gather = partial(_gather, f"{label}.agreement", process_set)

            def check(payload: UInt8) -> None:
                check_proposals(gather(payload))

            nodes = partial(_gather, f"{label}.nodes", process_set)
            try:
                topology = agree(self._compressor, process_set, hvd, check, nodes)
            except ValueError as error:
                self._refused = error  # the others do not ask again
                raise
            self._engine = GraphEngine(
                self._compressor,
                label,
                partial(_world, process_set, topology, initialization()),
                gather,
                elastic=is_elastic(),
            )
            self._exchanges = Exchanges(self._engine, process_set)
            self._plain = PlainSteps(self._engine) if phases(self._compressor).may_be_plain else None
            self._process_set = process_set
        elif self._process_set.process_set_id != process_set.process_set_id:
            raise ValueError(
                f"{self._compressor!r} already works in {self._process_set}, now it is called for {process_set}; make "
                "one compressor for each process set"
            )
        return self._exchanges

    def _lay_out(self, call: OptimizerCall, reduction: Reduction) -> _Layout:
        """Lay out the exchanges of all gradients of a call, in the graph that makes it."""
        gradients = call.gradients
        coming = handed_over(call)
        shapes = compressed_shapes(call, self._compressor.min_numel)
        again = repeated(call, coming, self._names)
        if self._compressor.mean_momentum() is not None and not again.keys() <= shapes.keys():
            names = ", ".join(sorted({call.variables[i].name for i in again.keys() - shapes.keys()}))
            raise ValueError(
                f"{self._compressor!r} has a momentum for each variable that is left to Horovod, and would advance it "
                f"twice: give the tape or optimizer {names} once"
            )
        again = {index: first for index, first in again.items() if first in shapes}
        for index in again:
            del shapes[index]  # what comes of a variable's gradient comes of it wherever the variable is named
        parameters = {
            index: Parameter(self._names[call.variables[index]], shape.num_elements(), gradients[index].dtype.size)
            for index, shape in shapes.items()
        }
        if self._engine is None:
            self._succeed(tuple(parameters.values()))
        exchanges = self._serve(reduction.process_set, digest_of_sizes(list(parameters.values())))
        assert self._engine is not None
        kinds = self._engine.prepare(weights(call, parameters, self._names))
        room, groups = float("inf"), call.groups or []
        if call.groups is None:
            room, groups = self._compressor.bucket_mb, [sorted(shapes, reverse=True)]  # about as they come
        buckets = []
        for group in groups:
            chosen = [parameters[index] for index in group if index in parameters]
            places = [index for index in group if index in parameters]
            cut = plan_buckets(
                range(len(chosen)), chosen, room, [kinds.get(parameter.name, "") for parameter in chosen]
            )
            buckets += [[places[number] for number in bucket] for bucket in cut]
        traced_buckets = [self._engine.traced_bucket([parameters[index] for index in bucket]) for bucket in buckets]
        rest = [g for index, g in enumerate(gradients) if g is not None and index not in {*shapes, *again}]
        uncompressed = sum(map(nbytes, rest))
        traced_call = TracedCall(traced_buckets, uncompressed)
        layout = _Layout(gradients, coming, Reduced("", reduction.factor, traced_call))
        reduced = {parameter.name for parameter in parameters.values()}
        decays = False
        if self._engine.momentum is not None:
            decays = self._engine.momentum.weight_decay > 0
            means = [index for index in coming if index not in again and (decays or index not in shapes)]
            traced_call.means = len(means)
            variables = [call.variables[index] for index in means]
            self._engine.restore_momenta({self._names[v]: v.shape.num_elements() or 0 for v in variables})
            reduced.update(self._names[variable] for variable in variables)
        if not buckets and not traced_call.means:
            return layout
        with _around(), tf.device("/cpu:0"), tf.control_dependencies(self._order.earlier(reduced)):
            TURNS.begin()
            label, plain = GRAPHS.label(_content(reduction, gradients, shapes), self), None
            if self._plain is not None:
                inside = sum(parameter.size * parameter.itemsize for parameter in parameters.values())
                plain = self._plain.lay_out(uncompressed + inside)
            ticket = exchanges.begin(traced_call, plain)
            layout.reduced = Reduced(label, reduction.factor, traced_call, plain, ticket)
            with tf.control_dependencies([ticket]):
                finite = exchanges.finite(rest)
                for number, (traced, members) in enumerate(zip(traced_buckets, buckets, strict=True)):
                    last = number == len(buckets) - 1  # about the last to be complete: it tells of the uncompressed
                    inputs = [gradients[index] for index in members]
                    into = [shapes[index] for index in members]
                    outputs = exchanges.lay_out(layout.reduced, traced, inputs, into, finite if last else None)
                    if decays:
                        outputs = [
                            exchanges.with_momentum(
                                layout.reduced, parameters[i].name, output, call.variables[i], compressed=True
                            )
                            for i, output in zip(members, outputs, strict=True)
                        ]
                    layout.outputs.update(zip(members, reduction.differentiable(outputs, inputs), strict=True))
            self._order.add(reduced, list(layout.outputs.values()), goes_on=self._engine.momentum is not None)
        layout.outputs.update({index: layout.outputs[first] for index, first in again.items()})
        return layout

    def _succeed(self, parameters: tuple[Parameter, ...]) -> None:
        """Notice that every step brings another compressor, which loses what the one before it held back."""
        before = _latest.get(parameters)
        if before is not None and before._compressor.runtime.statistics.total.steps == 1:
            self._short_lived = before._short_lived + 1
        _latest[parameters] = self
        if self._short_lived == 2 and self._compressor.error_feedback:
            _log.warning(
                "%r is made anew in every step, so that what it holds back is lost with every step: make it once, "
                "outside the training loop",
                self._compressor,
            )

    @cached_property
    def _identity(self) -> str:
        """What ranks compare of their compressors; a schedule of the user's own is asked many times for it."""
        return identity(self._compressor)

    def _standalone(self, tensor: Any, call: HorovodCall, reduction: Reduction) -> tuple[Any, _Standalone | None]:
        """Run the exchange of one tensor by itself, without memory, when the ranks know that they do the same."""
        if not tensor.shape.is_fully_defined() or tensor.shape.num_elements() < self._compressor.min_numel:
            return tensor, None
        check_dtype(tensor)
        if not call.process_set.included():
            return tensor, None
        exchanges = self._serve(call.process_set, "standalone")
        assert self._engine is not None
        traced = self._engine.standalone(
            tensor.shape.num_elements(), _standalone_name(tensor, call), eager=tf.executing_eagerly()
        )
        value = tf.convert_to_tensor(tensor)  # of a variable, too
        TURNS.begin()
        label = GRAPHS.label(_label(call.process_set, "standalone"), self)

        def exchange() -> Any:
            outputs = exchanges.lay_out(Reduced(label, reduction.factor), traced, [value], [value.shape])
            [output] = reduction.differentiable(outputs, [value])
            return output

        with tf.device("/cpu:0"):
            name = f"{label}.token".replace(".", "_")
            has = f"{tuple(tensor.shape)} {tensor.dtype.name}"
            token = comparable(f"{has} {self._identity}", name)
        return token, _Standalone(exchange, disagreement(call.name or NAMELESS, has, self._compressor))


def _label(process_set: Any, content: str) -> str:
    return f"hvd_compress.set{process_set.process_set_id}.{content}"


def _content(reduction: Reduction, gradients: Sequence[Any], shapes: Mapping[int, Any]) -> str:
    """Return what begins the names of a call's collectives, by the names and shapes of the gradients that it
    compresses: Horovod names its own after the gradients, too, but not with ``use_generic_names``. Eager tensors have
    no names."""
    nameless = reduction.ignore_name_scope or tf.executing_eagerly()
    named = [Parameter("" if nameless else gradients[i].name, shape.num_elements()) for i, shape in shapes.items()]
    return _label(reduction.process_set, digest_of(named))


def _refuse_join(_: Compressor) -> bool:
    """Return that a rank may not join. A step is a graph of the user's, in which it cannot take part for once: the
    others hear of it from Horovod, when this rank ends."""
    return True


def _standalone_name(tensor: Any, call: HorovodCall) -> str:
    """Return what tells a call's collectives from others': the name that Horovod would give its own.

    TensorFlow gives eager operations no names, so neither does Horovod then: one call follows another.
    """
    if tf.executing_eagerly():
        return "standalone"
    graph = tf.compat.v1.get_default_graph()
    name = graph.unique_name(re.sub("[^a-zA-Z0-9_]", "_", call.name or getattr(tensor, "name", None) or "captured"))
    return f"standalone.{name.rpartition('/')[2] if call.ignore_name_scope else name}"


def _around() -> Any:
    """Return the graph that makes the call: the one around the branch of ``tf.cond`` that is being traced."""
    if tf.executing_eagerly():
        return tf.init_scope()
    inner = tf.compat.v1.get_default_graph()
    graph = getattr(inner, "outer_graph", None)
    if graph is None or not graph.building_function:
        raise NotImplementedError(
            "gradients can be compressed in eager mode and inside tf.function, not in a TensorFlow 1 graph: wrap the "
            "training step in tf.function"
        )
    return graph.as_default()


def _world(process_set: Any, topology: Topology, first: int) -> World:
    """Return which workers this one is among now; ``topology`` is that of the ``first`` initialization."""
    number = initialization()
    if number != first:
        topology = Topology.single(process_set.size())
    return World(number, process_set.rank(), topology, mpi_ranks(hvd, process_set))


def _gather(name: str, process_set: Any, payload: Array) -> Array:
    """Gather from all ranks while a graph is traced or runs, waiting for the others; payloads may differ in size."""
    with _gathering, context.eager_mode():
        gathered: Array = hvd.allgather(tf.constant(payload), name=name, process_set=process_set).numpy()
    return gathered
