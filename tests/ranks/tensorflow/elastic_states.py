"""Scenarios: a state of ``hvd.elastic`` that keeps a compressor."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import pytest
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from hvd_compress import TopK
from tests.ranks.scenario import scenario


@scenario("mpirun 2")
def a_worker_dies_in_sync() -> None:
    """Horovod hears of it, in the words that it waits for, and the next ``sync`` finds all there."""
    compression = TopK(0.05)
    variable = tf.Variable(1.0 + hvd.rank())
    state = hvd.elastic.TensorFlowState([variable], compression=compression, step=hvd.rank())
    good = state._eval_fn

    def die(text: str) -> Any:
        raise tf.errors.UnknownError(None, None, text)

    state._eval_fn = lambda _: die("{{node HorovodBroadcast}} Horovod has been shut down")
    with pytest.raises(HorovodInternalError):
        state.sync()
    state._eval_fn = lambda _: die("no device")
    with pytest.raises(tf.errors.UnknownError, match="no device"):
        state.sync()
    state._eval_fn = good
    state.restore()
    state.sync()
    assert state.compression is compression
    assert state.step == 0
