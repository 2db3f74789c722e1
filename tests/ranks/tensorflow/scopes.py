"""Scenarios under TensorFlow: collectives among the ranks of a node, and among peers on several nodes."""

from __future__ import annotations

import numpy as np

import hvd_compress
from tests.ranks.scenario import scenario
from tests.ranks.scoped import Mesh
from tests.ranks.tensorflow.training import assert_replicas_equal, network, stepping, train


@scenario("mpirun 2", long=["mpirun 3", "mpirun 4", "mpirun 6", "nodes 4", "nodes 3"])
def every_collective_in_every_scope() -> None:
    """A compressor that loses nothing trains as Horovod does, whatever ranks form a node: all, two, one."""
    plain = network()
    train(stepping(plain, hvd_compress.Dense(bucket_mb=0.05)), steps=3)
    for per_node in (0, 1, 2):
        compression = Mesh(bucket_mb=0.05, per_node=per_node)
        model = network()
        train(stepping(model, compression), steps=3)
        assert_replicas_equal(model)
        for mine, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)
        recent = compression.stats()["recent"]
        assert all(recent["sent_bytes_by_scope"].values())
        assert sum(recent["sent_bytes_by_scope"].values()) == recent["sent_bytes"]
