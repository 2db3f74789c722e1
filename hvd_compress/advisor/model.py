"""The network that advice is asked for: its gradients, and the time of a step without communication."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BACKWARD_SHARE = 2 / 3
"""The share of a step that the backward pass takes, where it is not measured: twice the forward pass."""
TENSORS, LARGEST_TENSOR = 50, 2_500_000
"""A model of which only the number of parameters is known has so many tensors, or more of at most so many elements."""


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient; ``ready`` is the share of the backward pass that is over when it comes."""

    name: str
    shape: tuple[int, ...]
    ready: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Model:
    """Gradients in the order in which they come, and the seconds of a step without communication."""

    gradients: Sequence[Gradient]
    forward: float
    backward: float
    update: float

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.update

    @property
    def parameters(self) -> int:
        return sum(gradient.size for gradient in self.gradients)


def of_shapes(shapes: Sequence[tuple[str, tuple[int, ...]]], step: float) -> Model:
    """Return the model whose gradients have these names and shapes and come in this order, at equal intervals of the
    backward pass; ``step`` is the seconds of a step."""
    gradients = [Gradient(name, shape, (i + 1) / len(shapes)) for i, (name, shape) in enumerate(shapes)]
    return Model(gradients, step * (1 - BACKWARD_SHARE), step * BACKWARD_SHARE, 0.0)


def of_parameter_count(parameters: int, step: float) -> Model:
    """Return a model of equal matrices with so many parameters in all.

    >>> [gradient.shape for gradient in of_parameter_count(7, step=1.0).gradients]
    [(7, 1)]
    """
    count = max(TENSORS if parameters >= TENSORS else 1, -(-parameters // LARGEST_TENSOR))
    sizes = [parameters // count + (1 if i < parameters % count else 0) for i in range(count)]
    return of_shapes([(f"tensor{i}", (size, 1)) for i, size in enumerate(sizes)], step)


def gradients_of(profile: Mapping[str, Any]) -> list[Gradient]:
    """Return the gradients of a model from what ``benchmarks/end_to_end.py`` wrote of it."""
    return [Gradient(entry["name"], tuple(entry["shape"]), entry["ready"]) for entry in profile["tensors"]]
