"""Steps in which Horovod reduces all gradients itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_compress.drivers.tensorflow.python_calls import scalar
from hvd_compress.runtime.graph_engine import GraphEngine


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
        steps = scalar(partial(_plain_steps, self._engine, nbytes), tf.int64)
        with tf.control_dependencies([self._left.assign(tf.maximum(steps - 1, 0), read_value=False)]):
            return steps > 0


def _plain_steps(engine: GraphEngine, nbytes: int) -> Any:
    return np.int64(engine.plain_steps(nbytes))
