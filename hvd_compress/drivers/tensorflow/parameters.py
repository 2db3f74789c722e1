"""The gradients of an optimizer's call: which of them are compressed, and what they are called."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf

from hvd_compress.drivers.tensorflow.horovod_internals import OptimizerCall
from hvd_compress.runtime.bucketing import Parameter, is_compressed


class VariableNames:
    """Names of variables, the same from trace to trace and from rank to rank."""

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}

    def __getitem__(self, variable: Any) -> str:
        """Return a variable's own name, with a number if another one has it already."""
        key = getattr(variable, "_unique_id", None) or variable.ref()
        if key not in self._names:
            base = variable.name.removesuffix(":0")
            taken = set(self._names.values())
            names = itertools.chain([base], (f"{base}.{number}" for number in itertools.count(2)))
            self._names[key] = next(name for name in names if name not in taken)
        return self._names[key]


def check_dtype(tensor: Any) -> None:
    """Raise TypeError if a tensor's elements are not floating-point numbers."""
    if not tensor.dtype.is_floating:
        raise TypeError(
            f"tensors of {tensor.dtype.name} cannot be compressed; leave them to Horovod without compression"
        )


def nbytes(gradient: Any) -> int:
    """Return what Horovod sends of a gradient that is not compressed; 0 for a sparse one, which differs by the step."""
    if isinstance(gradient, tf.IndexedSlices):
        return 0
    elements = gradient.shape.num_elements()
    return int(elements * gradient.dtype.size) if elements is not None else 0


def handed_over(call: OptimizerCall) -> list[int]:
    """Return the places of the gradients that Horovod hands over, in the order in which it does: the dense ones, group
    by group if there are groups."""
    places = itertools.chain(*call.groups) if call.groups is not None else range(len(call.gradients))
    return [
        place
        for place in places
        if tf.is_tensor(call.gradients[place]) and not isinstance(call.gradients[place], tf.IndexedSlices)
    ]


def repeated(call: OptimizerCall, places: list[int], names: VariableNames) -> dict[int, int]:
    """Return which of these ``places`` have a variable that an earlier one of them has, and the earlier one."""
    first: dict[str, int] = {}
    found = {place: first.setdefault(names[call.variables[place]], place) for place in places}
    return {place: earlier for place, earlier in found.items() if earlier != place}


def compressed_shapes(call: OptimizerCall, min_numel: int) -> dict[int, Any]:
    """Return the shapes of the gradients that are to be compressed, by their places in the call."""
    shapes: dict[int, Any] = {}
    for index, gradient in enumerate(call.gradients):
        if gradient is None or isinstance(gradient, tf.IndexedSlices):
            continue
        shape = gradient.shape
        if not shape.is_fully_defined():
            shape = call.variables[index].shape
        if shape.is_fully_defined() and is_compressed(shape.as_list(), min_numel):
            check_dtype(gradient)
            shapes[index] = shape
    return shapes


def weights(call: OptimizerCall, parameters: dict[int, Parameter], names: VariableNames) -> dict[str, int]:
    """Return the names of a call's weights, and their sizes; 0 for those that are not compressed."""
    sizes = {}
    for index, gradient in enumerate(call.gradients):
        if index in parameters:
            sizes[parameters[index].name] = parameters[index].size
        elif gradient is not None and (gradient.shape.rank or 0) > 1:
            sizes[names[call.variables[index]]] = 0
    return sizes
