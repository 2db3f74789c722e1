"""The order of the calls within one graph: their agreements, their names, and who has the memories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

CONDITIONALS = ("If", "StatelessIf")
"""The types of what ``tf.cond`` makes (TensorFlow 2.18)."""


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


GRAPHS = Graphs()
