"""Scenarios: collectives among the ranks of a node, and among peers on several nodes."""

from __future__ import annotations

import horovod.torch as hvd

import hvd_compress
from tests.ranks.checks import expect
from tests.ranks.process_sets import halves
from tests.ranks.rounds import TwoRounds
from tests.ranks.scenario import scenario
from tests.ranks.scoped import Mesh
from tests.ranks.torch.oracle import close
from tests.ranks.torch.training import assert_replicas_equal, network, optimizer, train


@scenario("mpirun 2", "mpirun 4", long=["mpirun 3", "mpirun 6", "gloo 2", "nodes 4", "nodes 3"])
def every_collective_in_every_scope() -> None:
    """A compressor that loses nothing trains as Horovod does, whatever ranks form a node: all, two, one."""
    plain = network()
    train(plain, optimizer(plain, hvd_compress.Dense(bucket_mb=0.05)), steps=3)
    for per_node in (0, 1, 2):
        compression = Mesh(bucket_mb=0.05, per_node=per_node)
        model = network()
        train(model, optimizer(model, compression), steps=3)
        assert_replicas_equal(model)
        close(model, plain)
        recent = compression.stats()["recent"]
        assert all(recent["sent_bytes_by_scope"].values())
        assert sum(recent["sent_bytes_by_scope"].values()) == recent["sent_bytes"]


@scenario(long=["nodes 4", "nodes 3"])
def nodes_are_those_of_the_launcher() -> None:
    compression = Mesh(bucket_mb=0.05)
    model = network()
    train(model, optimizer(model, compression), steps=1)
    found = compression.runtime.driver._served.engine._transport.topology  # type: ignore[union-attr]
    assert found.nodes == {4: ((0, 1), (2, 3)), 3: ((0, 1), (2,))}[hvd.size()]


@scenario("mpirun 2", long=["mpirun 4"], last=True)
def another_compressor_on_one_rank() -> None:
    """The rank that asks for nodes and the one that does not find out, and neither waits for ever."""
    model = network()
    compression = Mesh() if hvd.rank() else TwoRounds()
    expect(ValueError, "ranks disagree on the compressor", run=lambda: train(model, optimizer(model, compression)))


@scenario("mpirun 4")
def in_a_process_set() -> None:
    """Process sets are made by all ranks together, and those outside would not know of it."""
    chosen = halves(hvd.size())[hvd.rank() % 2]
    model = network()
    run = lambda: train(model, optimizer(model, Mesh(), process_set=chosen), steps=1)  # noqa: E731
    expect(NotImplementedError, "global process set", run=run)
