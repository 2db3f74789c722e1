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
    """Something else in the graph fails when one of two buckets has its mean: when the graph is gone, and at the latest
    when the next step begins, everything is as it was before, and both buckets are at the same step."""
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

    for _ in range(2):
        ticket = engine.begin(call)
        exchange(first)
        exchange(second)
    before = held()
    ticket = engine.begin(call)
    exchange(first)
    with pytest.raises(RuntimeError, match="'first' has not come back"):
        engine.state_dict()
    del ticket
    assert held() == before
    assert engine.state_dict()["steps"] == [3, 3]
    ticket = engine.begin(call)
    exchange(first)
    ticket = engine.begin(call)
    compressor.discard()
    exchange(second)  # of the new step, though the other bucket was the first to begin the one before it
    exchange(first)
    assert held() == before
    assert compressor.stats()["total"]["skipped_steps"] == 2
    assert engine.state_dict()["steps"] == [5, 5]
    ticket = engine.begin(call)
    exchange(second)
    engine.drop()
    assert engine.state_dict()["steps"] == [6, 6]
    assert held() == before
    assert ticket.shape == (1,)


def test_a_graph_is_laid_out_for_a_number_of_workers() -> None:
    """Means would be divided by the old one."""
    worlds = [World(0, 0, Topology.single(2))]
    engine = GraphEngine(hvd_compress.TopK(0.1), "test", lambda: worlds[-1], lambda record: np.tile(record, (2, 1)))
    call = TracedCall([engine.traced_bucket([Parameter("w", 2000)])])
    engine.begin(call)
    worlds.append(World(1, 0, Topology.single(3)))
    with pytest.raises(RuntimeError, match=r"there are 3 workers now, and .* is laid out in a graph for 2, as "):
        engine.begin(call)


def test_a_graph_is_laid_out_for_nodes() -> None:
    worlds = [World(0, 0, Topology.of_sizes([2, 2]))]
    engine = GraphEngine(
        hvd_compress.TwoLevel(hvd_compress.TopK(0.1)),
        "test",
        lambda: worlds[-1],
        lambda record: np.tile(record, (4, 1)),
        elastic=True,
    )
    call = TracedCall([engine.traced_bucket([Parameter("w", 2000)])])
    engine.begin(call)
    worlds.append(World(1, 0, Topology.of_sizes([1, 3])))
    with pytest.raises(RuntimeError, match="is laid out in a graph for the nodes that they were on"):
        engine.begin(call)
