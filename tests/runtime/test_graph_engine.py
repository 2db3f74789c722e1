"""The scheduler that a graph calls, outside any optimizer."""

import numpy as np

import hvd_compress
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.world import World
from hvd_compress.topology import Topology


def test_eager_calls_outside_an_optimizer_are_counted() -> None:
    """Each has a bucket of its own, whose step tells its random numbers from those of the others. A traced call counts
    by itself; among other workers, some of which may be new, all begin anew."""
    worlds = [World(0, 0, Topology.single(1))]
    engine = GraphEngine(hvd_compress.QSGDMaxNorm(bits=2), "test", lambda: worlds[-1], lambda record: record)

    def step(*, eager: bool) -> int:
        traced = engine.standalone(64, "standalone", eager=eager)
        engine.launch(None, traced, "", [np.ones(64, np.float32)], True)
        return traced.bucket.step

    assert [step(eager=True), step(eager=True), step(eager=False), step(eager=True)] == [0, 1, 0, 2]
    worlds.append(World(1, 0, Topology.single(1)))
    assert [step(eager=True), step(eager=True)] == [0, 1]
