"""Scenarios under TensorFlow: entries that are summed on their way, and indices that all ranks share."""

from __future__ import annotations

from collections.abc import Callable

import horovod.tensorflow as hvd

from hvd_compress import Compressor, SharedTopK, TopK, WarmUp
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

MAKE: list[Callable[[], Compressor]] = [
    lambda: TopK(0.05, aggregate="reduce-scatter", bucket_mb=0.05),
    lambda: SharedTopK(0.05, bucket_mb=0.05),
]
LONG = ["mpirun 3", "mpirun 4", "mpirun 6"]


@scenario(long=LONG)
def not_finite_and_flushed() -> None:
    for make in MAKE:
        model, compression = network(), make()
        skip_a_step_and_flush(model, compression)
        assert_replicas_equal(model)


@scenario(long=["mpirun 2", *LONG])
def nothing_is_lost_and_replicas_are_equal() -> None:
    for make in MAKE:
        check_ledger(network(), make())


@scenario(long=["mpirun 2", *LONG])
def resumed_with_another_number_of_ranks() -> None:
    for make in MAKE:
        check_resumed(make, make, hvd.size() + 1)


@scenario(long=["mpirun 2", *LONG])
def everything_is_what_horovod_sends() -> None:
    check_as_horovod([TopK(1.0, aggregate="reduce-scatter"), SharedTopK(1.0)])


@scenario(long=["mpirun 2", *LONG])
def auto_follows_a_schedule() -> None:
    """Of the two plans that are laid out, every step takes the one that the model says."""
    compression = TopK(WarmUp(0.001, every=1), aggregate="auto", link=(1e7, 0.0))
    model = network()
    train(stepping(model, compression), steps=6)
    assert compression.stats()["aggregate"]
    assert_replicas_equal(model)
