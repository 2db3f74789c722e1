"""What is checked of each step of an elastic job under TensorFlow, whoever runs the steps."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress
from hvd_compress.drivers.tensorflow.parameters import VariableNames
from tests.ranks.elastic_oracle import Arrays, Oracle
from tests.ranks.elastic_plan import RATE, Plan
from tests.ranks.tensorflow.training import digest


def average(vector: np.ndarray) -> np.ndarray:
    return hvd.allreduce(tf.constant(vector), name="oracle", op=hvd.Average).numpy()


class Steps:
    """One worker's steps: ``before`` and ``after`` each of them."""

    def __init__(self, plan: Plan, model: Any, compression: hvd_compress.Compressor) -> None:
        self._plan, self._model, self._compression = plan, model, compression
        self._oracle = Oracle(plan, compression, average, left_alone=True)
        naming = VariableNames()
        self._names = [naming[variable] for variable in model.trainable_variables]

    def before(self, state: Any) -> None:
        """Do what is planned before a step, and take note of what there is."""
        self._plan.before(state, self._compression)
        self._oracle.before()
        self._weights = self._by_name(self._model.trainable_variables)

    def after(self, state: Any, loss: float, own: Any, means: Any = None) -> None:
        """Check a step of plain gradient descent with these gradients of this worker, and count it. Without ``means``,
        which Keras' optimizer keeps to itself, they are what the weights have moved by."""
        if means is None:
            after = self._by_name(self._model.trainable_variables)
            self._oracle.rounding = max(np.spacing(np.abs(array).max()) for array in self._weights.values()) / RATE
            means = [(self._weights[name].astype(np.float64) - after[name]) / RATE for name in self._names]
        self._oracle.check(self._by_name(own), self._by_name(means))
        self._plan.check(digest(self._model), self._compression)
        state.step += 1
        self._plan.note(state.step, loss, self._compression)

    def _by_name(self, arrays: Any) -> Arrays:
        return {name: np.array(array) for name, array in zip(self._names, arrays, strict=True)}
