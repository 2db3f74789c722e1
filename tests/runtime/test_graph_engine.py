"""The scheduler that a graph calls: outside any optimizer, and steps that end in the middle of a graph."""

import numpy as np
import pytest

import hvd_compress
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.graph_step import TracedBucket, TracedCall
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


def test_a_step_that_ends_in_the_middle_of_a_graph() -> None:
    """Something else in the graph fails when one of two buckets has its mean: the next step finds everything as it was
    before, and both buckets are at the same step."""
    compressor = hvd_compress.TopK(0.1)
    worlds = [World(0, 0, Topology.single(1))]
    engine = GraphEngine(compressor, "test", lambda: worlds[-1], lambda record: record)
    first, second = (engine.traced_bucket([Parameter(name, 2000)]) for name in ("first", "second"))
    call = TracedCall([first, second])
    rng = np.random.default_rng(0)

    def exchange(traced: TracedBucket) -> None:
        sent = engine.launch(call, traced, "", [rng.standard_normal(2000).astype(np.float32)], True)
        engine.land(traced, sent, 1.0)

    def held() -> dict[str, bytes]:
        return {name: arrays["residual"].tobytes() for name, arrays in engine.state_dict()["memory"].items()}

    for traced in (first, second, first, second):
        exchange(traced)
    before = held()
    exchange(first)
    with pytest.raises(RuntimeError, match="'first' has not come back"):
        engine.state_dict()
    compressor.discard()
    exchange(first)
    exchange(second)
    assert held() == before
    assert compressor.stats()["total"]["skipped_steps"] == 1
    assert engine.state_dict()["steps"] == [4, 4]
    exchange(second)  # of the other bucket
    engine.drop()
    assert engine.state_dict()["steps"] == [5, 5]
    assert held() == before
