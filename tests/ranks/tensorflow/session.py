"""What a rank does before the first scenario under TensorFlow, and after each."""

from __future__ import annotations

import gc

import horovod.tensorflow as hvd
import tensorflow as tf


def begin() -> tuple[int, int]:
    """Return the rank and the number of ranks."""
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    return hvd.rank(), hvd.size()


def clear() -> None:
    tf.keras.backend.clear_session()
    gc.collect()
