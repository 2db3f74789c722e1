"""The order of functions with compressed gradients, told to TensorFlow's automatic control dependencies.

TensorFlow runs what a function calls in the order in which it was traced where it touches the same resources: what
writes to one alone, what reads it side by side. Functions that touch none in common run side by side, and what one does
twice, or two with the same names for their collectives, would mix. So TensorFlow is told of a resource that does not
exist (known of TensorFlow 2.18). What a call of Horovod's lays out reads it. A function, branch or loop in which calls
begin writes to it; it has all turns to itself. Nothing of this is in the graph but the control dependencies that come
of it, so that functions may be saved.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf
from tensorflow.python.framework import auto_control_deps, op_def_registry

with tf.Graph().as_default():
    _TURN = tf.zeros([], name="hvd_compress_turn")  # is only compared


class Turns:
    """Knows which graphs calls begin in, and what takes part in them. Operations are held by name, for they keep their
    graph alive."""

    def __init__(self) -> None:
        self._alone: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        self._parts: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

    def begin(self) -> None:
        """Notice that a call begins in the graph that is being made."""
        if not tf.executing_eagerly():
            self._alone[tf.compat.v1.get_default_graph()] = True

    def join(self) -> None:
        """Notice that the graph that is being made, a branch of Horovod's or of a layout, has a part of a call that
        has begun around it."""
        if not tf.executing_eagerly():
            self._alone.setdefault(tf.compat.v1.get_default_graph(), False)

    def add(self, operation: Any) -> None:
        """Take an operation for a part of a call."""
        self.join()
        self._parts.setdefault(operation.graph, set()).add(operation.name)

    def touch(self, operation: Any, reads: Any, writes: Any) -> bool:
        """Add the turn to what an operation reads or writes; return whether it was added. TensorFlow calls this for
        every operation when a graph is complete, inner graphs first."""
        graph = operation.graph
        if _TURN in reads or _TURN in writes:
            return False
        if operation.name in self._parts.get(graph, ()):
            reads.add(_TURN)
            return True
        alone = {self._alone[inner] for inner in _graphs(operation) if inner in self._alone}
        if not alone:
            return False
        if True in alone:
            self._alone[graph] = True
            writes.add(_TURN)
        else:
            self._alone.setdefault(graph, False)
            reads.add(_TURN)
        return True


def _graphs(operation: Any) -> list[Any]:
    """Return the graphs of the functions, branches and bodies that an operation runs."""
    found = []
    for attribute in _function_attributes(operation.type):
        value = operation.get_attr(attribute)
        for function in value if isinstance(value, list) else [value]:
            known = operation.graph._get_function(function.name)
            found.append(getattr(known, "graph", None))
    return [graph for graph in found if graph is not None]


@cache
def _function_attributes(kind: str) -> tuple[str, ...]:
    definition = op_def_registry.get(kind)
    attributes = definition.attr if definition is not None else ()
    return tuple(attribute.name for attribute in attributes if attribute.type in ("func", "list(func)"))


TURNS = Turns()
auto_control_deps.register_acd_resource_resolver(TURNS.touch)
