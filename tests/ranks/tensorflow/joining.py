"""Scenarios under TensorFlow: ranks with fewer batches than others call ``hvd.join()``."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np

import hvd_compress
from tests.ranks.checks import expect
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import assert_replicas_equal, digest, network, stepping, train


def uneven(compression: Any) -> list[np.ndarray]:
    """Rank 0's weights after steps of its own and such that all ranks take part in, before them and after."""
    model = network()
    step = stepping(model, compression, lr=0.05)
    train(step, steps=2)
    if hvd.rank() == 0:
        train(step, steps=2, first=2)
    hvd.join()
    hvd.broadcast_variables(model.variables, root_rank=0)
    train(step, steps=2, first=4)
    assert_replicas_equal(model)
    return model.get_weights()


@scenario("mpirun 2", long=["mpirun 4"], first=True)
def joining_is_as_without_compression() -> None:
    expected = uneven(hvd.Compression.none)
    for compression, bound in ((hvd_compress.Dense(), 1e-6), (hvd_compress.QSGDMaxNorm(16), 1e-3)):
        for mine, other in zip(uneven(compression), expected, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=bound)


@scenario("mpirun 2", long=["mpirun 4"], first=True)
def joining_is_refused_on_the_rank_that_asks() -> None:
    """At once, and before it has joined: where it goes on with its step, training is as if it had not asked."""
    digests = set()
    for asks in (False, True):
        model = network()
        step = stepping(model, hvd_compress.TopK(0.05))
        train(step, steps=2)
        if asks and hvd.rank() == 0:
            expect(RuntimeError, "hvd.join()", "TopK", run=hvd.join)
        train(step, steps=2, first=2)
        assert_replicas_equal(model)
        digests.add(digest(model))
    assert len(digests) == 1
