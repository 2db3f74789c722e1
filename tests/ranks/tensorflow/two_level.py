"""Scenarios under TensorFlow: dense within a node, compressed between nodes."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np

import hvd_compress
from tests.ranks.checks import memory, same
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import assert_replicas_equal, batches, network, stepping, train

LONG = ["mpirun 2", "mpirun 3", "mpirun 4", "mpirun 6", "nodes 4", "nodes 3"]


def two_level(inner: Any = None, **keywords: Any) -> hvd_compress.TwoLevel:
    inner = inner or hvd_compress.SIDCo(0.05)
    return hvd_compress.TwoLevel(inner, **{"bucket_mb": 0.05, "ranks_per_node": 2, **keywords})


@scenario("mpirun 3", long=LONG)
def a_wrapped_compressor_that_loses_nothing_trains_as_horovod_does() -> None:
    plain = network()
    train(stepping(plain, hvd.Compression.none), steps=3)
    for inner in (hvd_compress.Dense(), hvd_compress.TopK(1.0, aggregate="reduce-scatter")):
        model = network()
        train(stepping(model, two_level(inner)), steps=3)
        assert_replicas_equal(model)
        for mine, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


@scenario(long=LONG)
def not_finite_flushed_and_resumed() -> None:
    for inner in (hvd_compress.SIDCo(0.05), hvd_compress.RandKMaxNorm(0.2)):
        model = network()
        compression = two_level(inner)
        step = stepping(model, compression, lr=0.05)
        train(step, steps=2)
        before, weights = memory(compression), model.get_weights()
        inputs, labels = next(batches(1, 2))
        step(inputs * (np.inf if hvd.rank() == hvd.size() - 1 else 1), labels)
        assert np.isnan(model.trainable_variables[0].numpy()).all()
        assert same(before, memory(compression))
        model.set_weights(weights)
        step = stepping(model, compression, lr=0.05)
        if hvd.rank() == 0:
            compression.flush()
        train(step, steps=1, first=3)
        assert not any(array.any() for array in memory(compression).values())
        train(step, steps=1, first=4)
        assert_replicas_equal(model)
        again = two_level(inner)
        again.load_state_dict(compression.state_dict())
        train(stepping(model, again, lr=0.05), steps=1, first=5)
        assert_replicas_equal(model)
