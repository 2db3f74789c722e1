"""Scenarios: sparsifiers whose entries are summed on their way, and indices that all ranks share."""

from __future__ import annotations

from collections.abc import Callable

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress import Compressor, SharedTopK, SIDCo, TopK
from hvd_compress.state_format import seal
from tests.ranks.checks import memory, same
from tests.ranks.process_sets import halves
from tests.ranks.scenario import scenario
from tests.ranks.torch.oracle import check_ledger, close
from tests.ranks.torch.training import assert_replicas_equal, batches, gather, network, optimizer, train

MAKE: list[Callable[[], Compressor]] = [
    lambda: TopK(0.05, aggregate="reduce-scatter", bucket_mb=0.05),
    lambda: SIDCo(0.05, aggregate="reduce-scatter", wire="float16", bucket_mb=0.05),
    lambda: SharedTopK(0.05, bucket_mb=0.05),
]
LONG = ["mpirun 3", "mpirun 4", "mpirun 6", "gloo 2"]


@scenario("mpirun 2", long=LONG)
def nothing_is_lost_and_replicas_are_equal() -> None:
    """After a flush the weights are where the sum of all gradients has them, and all memories are empty."""
    for make in MAKE:
        check_ledger(network(), make())


@scenario("mpirun 2", long=LONG)
def not_finite_on_any_rank() -> None:
    for make in MAKE:
        for culprit in range(hvd.size()):
            model, compression = network(), make()
            opt = optimizer(model, compression, lr=0.05)
            train(model, opt, steps=2)
            before = memory(compression)
            ((inputs, labels),) = batches(1, 2)
            opt.zero_grad()
            factor = float("nan") if hvd.rank() == culprit else 1.0
            (torch.nn.functional.cross_entropy(model(inputs), labels) * factor).backward()
            opt.step()
            assert same(before, memory(compression))
            train(model, opt, steps=1, first=3)
            assert_replicas_equal(model)


@scenario(long=["mpirun 2", *LONG])
def everything_is_what_horovod_sends() -> None:
    """With a ratio of 1, in the global process set and in others."""
    plain = network()
    train(plain, optimizer(plain, hvd.Compression.none), steps=4)
    for compression in (TopK(1.0, aggregate="reduce-scatter"), SharedTopK(1.0)):
        model = network()
        train(model, optimizer(model, compression), steps=4)
        assert_replicas_equal(model)
        close(model, plain)
    chosen = halves(hvd.size())[hvd.rank() % 2]
    alone = network()
    train(alone, optimizer(alone, hvd.Compression.none, process_set=chosen), steps=4)
    for make in (lambda: TopK(1.0, aggregate="reduce-scatter"), lambda: SharedTopK(1.0)):
        model = network()
        train(model, optimizer(model, make(), process_set=chosen), steps=4)
        close(model, alone)


@scenario(long=["mpirun 2", *LONG])
def resumed_with_another_number_of_ranks() -> None:
    for make in MAKE:
        model, compression = network(), make()
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        compression.flush()
        train(model, opt, steps=1, first=2)
        one = gather(compression.state_dict())[0]
        again = make()
        again.load_state_dict(seal({**one, "workers": hvd.size() + 1}))
        other = network()
        train(other, optimizer(other, again), steps=2)
        assert_replicas_equal(other)


@scenario("mpirun 2", long=LONG)
def auto_is_the_same_everywhere() -> None:
    compression = hvd_compress.TopK(0.1, aggregate="auto", bucket_mb=0.05, link=(1e7, 0.0))
    model = network()
    train(model, optimizer(model, compression), steps=2)
    ways = gather(compression.stats()["aggregate"])
    assert ways[0]
    assert all(way == ways[0] for way in ways)
    assert_replicas_equal(model)
