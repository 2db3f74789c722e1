"""The training of an elastic job as it is with all workers' data in one place: nothing is compressed or exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.ranks.elastic_plan import RATE, batch


def losses(arrays: Sequence[np.ndarray], workers: Mapping[int, int]) -> dict[tuple[int, int], float]:
    """Return the loss of each step and rank.

    Args:
        arrays: the network's first weights, (inputs, outputs), and biases, layer after layer.
        workers: how many workers there are in every step, the first of which is 0.
    """
    weights = [array.astype(np.float64) for array in arrays]
    found = {}
    for step in range(len(workers)):
        sums = [np.zeros_like(array) for array in weights]
        for rank in range(workers[step]):
            found[step, rank], gradients = _backward(weights, *batch(step, rank))
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
        for array, total in zip(weights, sums, strict=True):
            array -= RATE * total / workers[step]
    return found


def _backward(weights: Sequence[np.ndarray], inputs: np.ndarray, labels: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """Return the cross-entropy of linear layers with ReLU between them, and the gradients of ``weights``."""
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    values = [inputs.astype(np.float64)]
    for number, (weight, bias) in enumerate(layers, 1):
        output = values[-1] @ weight + bias
        values.append(np.maximum(output, 0) if number < len(layers) else output)
    logits, each = values.pop(), np.arange(len(labels))
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    error = np.exp(logs)
    error[each, labels] -= 1
    error /= len(labels)
    gradients: list[np.ndarray] = []
    for (weight, _), value in zip(reversed(layers), reversed(values), strict=True):
        gradients = [value.T @ error, error.sum(0), *gradients]
        error = (error @ weight.T) * (value > 0)
    return -float(logs[each, labels].mean()), gradients
