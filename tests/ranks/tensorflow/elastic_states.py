"""Scenarios: a state of ``hvd.elastic`` that keeps a compressor."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import pytest
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from hvd_compress import QSGDMaxNorm, TopK, compressor_dataclass
from tests.ranks.rounds import LeaderFirst
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import batches, network, stepping

COLLECTIVES = [f"Horovod{kind}" for kind in ("Allreduce", "Allgather", "Broadcast", "Alltoall", "Reducescatter")]


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
    variable.assign(7.0)
    heard, state._bcast_object = state._bcast_object, lambda _: die("{{node HorovodBroadcast}}")
    with pytest.raises(HorovodInternalError):
        state.sync()
    state._bcast_object = heard
    state.restore()
    assert variable.numpy() == 1.0, "weights and memories go back to the same commit"
    state.sync()
    assert state.compression is compression
    assert state.step == 0


@compressor_dataclass
class Stumbling(TopK):
    """Raises what it is told to in its second step."""

    error: Any = None

    def exchange(self, bucket: Any) -> Any:
        if bucket.step == 1 and self.error is not None:
            raise self.error
        return super().exchange(bucket)


@scenario("mpirun 2")
def an_error_in_a_step_does_not_end_the_training_in_silence() -> None:
    """As it would if ``hvd.elastic.run`` could not tell it from a training that has come to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOROVOD_ELASTIC", "1")
        step = stepping(network(), Stumbling(0.05, error=RuntimeError("stumbled")))

        def train(_: Any) -> None:
            for inputs, labels in batches(2):
                step(inputs, labels)

        state = hvd.elastic.TensorFlowState([tf.Variable(1.0)])
        with pytest.raises(tf.errors.InvalidArgumentError, match="RuntimeError: stumbled"):
            hvd.elastic.run(train)(state)


@scenario("mpirun 2")
def a_lost_worker_is_known_by_the_names_of_operations() -> None:
    """Of all of them: any may be the one that fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOROVOD_ELASTIC", "1")
        for compression in (QSGDMaxNorm(), TopK(0.05, aggregate="reduce-scatter"), LeaderFirst()):
            inputs, labels = next(batches(1))
            graph = stepping(network(), compression).get_concrete_function(inputs, labels).graph
            definition = graph.as_graph_def()
            nodes = [
                *definition.node,
                *(node for function in definition.library.function for node in function.node_def),
            ]
            collectives = [node for node in nodes if node.op in COLLECTIVES]
            assert any("hvd_compress" in node.name for node in collectives)
            for node in collectives:
                assert any(f"Horovod{kind}" in node.name for kind in ("Allreduce", "Allgather", "Broadcast")), node
