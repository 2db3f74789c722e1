"""Scenarios under TensorFlow: dense within a node, compressed between nodes."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd

import hvd_compress
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import (
    assert_replicas_equal,
    check_as_horovod,
    check_ledger,
    check_resumed,
    network,
    skip_a_step_and_flush,
    stepping,
    train,
)

LONG = ["mpirun 2", "mpirun 3", "mpirun 4", "mpirun 6", "nodes 4", "nodes 3"]


def two_level(inner: Any = None, **keywords: Any) -> hvd_compress.TwoLevel:
    inner = inner or hvd_compress.SIDCo(0.05)
    return hvd_compress.TwoLevel(inner, **{"bucket_mb": 0.05, "ranks_per_node": 2, **keywords})


@scenario(long=LONG)
def nothing_is_lost_and_replicas_are_equal() -> None:
    for inner in (hvd_compress.SIDCo(0.05), hvd_compress.TopK(0.05, aggregate="reduce-scatter")):
        check_ledger(network(), two_level(inner))


@scenario(long=LONG)
def a_wrapped_compressor_that_loses_nothing_trains_as_horovod_does() -> None:
    check_as_horovod(map(two_level, (hvd_compress.Dense(), hvd_compress.TopK(1.0, aggregate="reduce-scatter"))))


@scenario(long=LONG)
def not_finite_flushed_and_resumed() -> None:
    for inner in (hvd_compress.SIDCo(0.05), hvd_compress.RandKMaxNorm(0.2)):
        model = network()
        compression = two_level(inner)
        skip_a_step_and_flush(model, compression)
        train(stepping(model, compression, lr=0.05), steps=1, first=4)
        assert_replicas_equal(model)
        again = two_level(inner)
        again.load_state_dict(compression.state_dict())
        train(stepping(model, again, lr=0.05), steps=1, first=5)
        assert_replicas_equal(model)


@scenario(long=LONG)
def resuming_on_other_nodes() -> None:
    """With the ranks' own states on any nodes; and on any number of ranks with one for all, after a flush."""
    model, compression = network(), two_level()
    train(stepping(model, compression), steps=3)
    saved = compression.state_dict()
    for per_node in (1, 8):
        again = two_level(ranks_per_node=per_node)
        again.load_state_dict(saved)
        train(stepping(model, again), steps=2, first=3)
        assert_replicas_equal(model)
    check_resumed(two_level, lambda: two_level(ranks_per_node=1), hvd.size() + 3)
