"""Scenarios: dense within a node, compressed between nodes."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress.state_format import seal
from tests.ranks.checks import memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.oracle import check_ledger, close
from tests.ranks.torch.training import assert_replicas_equal, batches, gather, network, optimizer, train

LONG = ["mpirun 2", "mpirun 3", "mpirun 6", "gloo 4", "nodes 4", "nodes 3"]
"""Two nodes of two ranks are the usual case; one node of two, nodes of two and one, three of two, and real ones."""


def two_level(inner: Any = None, **keywords: Any) -> hvd_compress.TwoLevel:
    inner = inner or hvd_compress.SIDCo(0.05)
    return hvd_compress.TwoLevel(inner, **{"bucket_mb": 0.05, "ranks_per_node": 2, **keywords})


@scenario("mpirun 4", long=LONG)
def nothing_is_lost_and_replicas_are_equal() -> None:
    """After a flush the weights are where the sum of all gradients has them, and all memories are empty."""
    for inner in (hvd_compress.SIDCo(0.05), hvd_compress.TopK(0.05, aggregate="reduce-scatter")):
        check_ledger(network(), two_level(inner))


@scenario(long=["mpirun 4", *LONG])
def a_wrapped_compressor_that_loses_nothing_trains_as_horovod_does() -> None:
    plain = network()
    train(plain, optimizer(plain, hvd.Compression.none), steps=5)
    for inner in (hvd_compress.Dense(), hvd_compress.TopK(1.0), hvd_compress.TopK(1.0, aggregate="reduce-scatter")):
        for per_node in (None, 1, 2, 8):
            model = network()
            train(model, optimizer(model, two_level(inner, ranks_per_node=per_node)), steps=5)
            assert_replicas_equal(model)
            close(model, plain)


@scenario(long=["mpirun 4", *LONG])
def not_finite_on_any_rank() -> None:
    for inner in (hvd_compress.SIDCo(0.05), hvd_compress.RandKMaxNorm(0.2)):
        for culprit in range(hvd.size()):
            model = network()
            compression = two_level(inner)
            opt = optimizer(model, compression, lr=0.05)
            train(model, opt, steps=2)
            before, weights = memory(compression), [p.detach().clone() for p in model.parameters()]
            ((inputs, labels),) = batches(1, 2)
            opt.zero_grad()
            factor = float("inf") if hvd.rank() == culprit else 1.0
            (torch.nn.functional.cross_entropy(model(inputs), labels) * factor).backward()
            opt.step()
            assert same(before, memory(compression))
            assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
            train(model, opt, steps=1, first=3)
            assert_replicas_equal(model)


@scenario(long=["mpirun 4", *LONG])
def resuming_on_other_nodes() -> None:
    """With the ranks' own states on any nodes; and on any number of ranks with one for all, after a flush."""
    model = network()
    compression = two_level()
    opt = optimizer(model, compression)
    train(model, opt, steps=3)
    saved = compression.state_dict()
    for per_node in (2, 1, 8):
        again = two_level(ranks_per_node=per_node)
        again.load_state_dict(saved)
        other = network()
        train(other, optimizer(other, again), steps=2)
        assert_replicas_equal(other)
    compression.flush()
    train(model, opt, steps=1, first=3)
    one = gather(compression.state_dict())[0]
    assert not any(array.any() for arrays in one["memory"].values() for array in arrays.values())
    again = two_level(ranks_per_node=1)
    again.load_state_dict(seal({**one, "workers": hvd.size() + 3}))
    other = network()
    train(other, optimizer(other, again), steps=2)
    assert_replicas_equal(other)
