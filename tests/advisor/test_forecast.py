"""Simulated steps, against cases computed by hand."""

import dataclasses
import math

import pytest

from hvd_compress.advisor.cluster import ALLGATHER, ALLREDUCE, KINDS, Cluster
from hvd_compress.advisor.costs import CollectiveCost, ExchangeCost
from hvd_compress.advisor.forecast import compressed, uncompressed
from hvd_compress.advisor.model import Gradient, Model
from hvd_compress.advisor.timeline import QueuedCollective, Timeline
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather

ALPHA, BETA = 1e-4, 1e-9  # 8 Gbit/s


def one_tensor(size: int, step: float = 0.3) -> Model:
    return Model([Gradient("w", (size, 1), 1.0)], step / 3, 2 * step / 3, 0.0)


def test_nothing_to_hide_behind() -> None:
    """A single gradient comes at the end: the step is the computation, the overhead, and the transfer."""
    link = Cluster.of_link(8 / BETA, ALPHA, overhead=0.001)
    found = uncompressed(one_tensor(10**7), link, 8, None)
    assert found.compute == pytest.approx(0.3)
    assert found.wait == pytest.approx(0.001 + 2 * 4 * ALPHA / 2 + 14 * ALPHA + 1.75 * 4e7 * BETA)
    assert found.step == pytest.approx(found.compute + found.wait)


def test_communication_hides_behind_the_backward_pass() -> None:
    """The first of two gradients comes halfway: what of its transfer (0.08 s) fits into the other half (0.05 s) is
    hidden, the second's waits for the rest."""
    model = Model([Gradient("b", (10**7, 1), 0.5), Gradient("a", (10**7, 1), 1.0)], 0.1, 0.1, 0.0)
    link = Cluster.of_link(4e9, 0.0, overhead=0.0)
    found = uncompressed(model, link, 2, None)
    assert found.step == pytest.approx(0.15 + 0.08 + 0.08)
    assert found.wait == pytest.approx(0.11)


def test_horovod_fuses_what_waits() -> None:
    """Three gradients that come together pay the overhead once."""
    model = Model([Gradient(str(i), (1000, 1), 1.0) for i in range(3)], 0.1, 0.1, 0.0)
    link = Cluster.of_link(8e9, 0.0, overhead=0.01)
    assert uncompressed(model, link, 2, None).wait == pytest.approx(0.01 + 12000 * 1e-9)


class Everything(Compressor):
    """For the layout of buckets only."""

    name = "everything"
    schedule = (AllGather,)


def test_an_exchange_by_hand() -> None:
    """Two rounds, 10 and 20 ms of computation before them, 30 ms after; one bucket that comes at the end.

    step 300 + 10 + (5 + 1) + 20 + (5 + 8) + 30 ms. The token's all-reduce begins at once, and is through (5 ms) before
    the first round is compressed. Compression is on a thread of its own, for which the step waits.
    """
    link = Cluster.of_link(8e9, 0.0, overhead=0.005)
    cost = ExchangeCost((CollectiveCost(ALLREDUCE, 1e6, 0.010), CollectiveCost(ALLREDUCE, 8e6, 0.020)), 0.030)
    found = compressed(one_tensor(10**6), link, 2, Everything(), {10**6: cost})
    assert found.beside == pytest.approx(0.030)
    assert found.compress == 0
    assert found.decompress == pytest.approx(0.030)
    assert found.wait == pytest.approx(0.030 + 0.006 + 0.013, abs=1e-5)
    assert found.step == pytest.approx(0.3 + 0.030 + 0.030 + 0.019, abs=1e-5)


def test_the_last_bucket_waits_for_every_gradient_and_the_first_does_not() -> None:
    model = Model(
        [Gradient("c", (5_000_000, 1), 0.5), Gradient("b", (5_000_000, 1), 0.75), Gradient("bias", (10,), 1.0)],
        0.0,
        1.0,
        0.0,
    )
    link = Cluster.of_link(8e9, 0.0, overhead=0.0)
    cost = ExchangeCost((CollectiveCost(ALLGATHER, 4e8, 0.0),), 0.0)  # 0.4 s each
    found = compressed(model, link, 2, Everything(), {5_000_000: cost})
    assert found.step == pytest.approx(1.0 + 0.4, abs=1e-4)  # the first from 0.5 to 0.9, the second from 1.0 to 1.4


def test_the_driver_costs_every_gradient_where_there_is_a_compressor() -> None:
    """10 ms for each of three gradients, whether it is compressed or not; nothing without a compressor."""
    model = Model(
        [Gradient("c", (10**5, 1), 0.5), Gradient("b", (10**5, 1), 0.75), Gradient("bias", (10,), 1.0)], 0.1, 0.2, 0.0
    )
    cost = ExchangeCost((CollectiveCost(ALLGATHER, 0.0, 0.0),), 0.0)
    free = Cluster.of_link(8e9, 0.0, overhead=0.0)
    link = dataclasses.replace(free, per_gradient=0.010)
    found = compressed(model, link, 2, Everything(), {2 * 10**5: cost})
    assert found.compute == pytest.approx(0.3 + 3 * 0.010)
    assert uncompressed(model, link, 2, None) == uncompressed(model, free, 2, None)


def test_computation_and_transfers_slow_each_other_down() -> None:
    """A transfer of 1 s beside computation of 2 s, twice and 1.5 times as slow together: the transfer ends after 2 s,
    in which 2 / 1.5 s were computed."""
    link = Cluster(0.0, dict.fromkeys(KINDS, ((1.0, 1e-9),)), 0.0, busy={ALLREDUCE: 2.0}, slowdown=1.5)
    timeline = Timeline(link, 2)
    collective = timeline.start(QueuedCollective(ALLREDUCE, 1e9))
    assert timeline.work(2.0) == pytest.approx(2.0 + (2.0 - 2.0 / 1.5))
    assert collective.done
    assert timeline.wait(lambda: collective.done) == 0


def test_compression_beside_the_backward_pass_costs_nothing_but_the_last_bucket() -> None:
    """Two buckets, each 100 ms to compress, at 0.5 and 1 s: the first is hidden. One core: it is not."""
    model = Model([Gradient("b", (5_000_000, 1), 0.5), Gradient("a", (5_000_000, 1), 1.0)], 0.0, 1.0, 0.0)
    known = {5_000_000: ExchangeCost((CollectiveCost(ALLGATHER, 1.0, 0.1),), 0.02)}
    for cores, step in ((math.inf, 1.0 + 0.1 + 0.04), (1.0, 1.1 + 0.1 + 0.04)):
        link = Cluster(0.0, dict.fromkeys(KINDS, ((1.0, 1e-9),)), 0.0, cores=cores)
        found = compressed(model, link, 2, Everything(), known)
        assert found.step == pytest.approx(step, abs=1e-4)
        assert found.beside == pytest.approx(0.2)


def test_efficiency_falls_with_payloads_that_add_up() -> None:
    cost = ExchangeCost((CollectiveCost(ALLGATHER, 1e6, 0.0),), 0.0)
    link = Cluster.of_link(10e9, 1e-5)
    steps = [compressed(one_tensor(10**6), link, n, Everything(), {10**6: cost}).step for n in (2, 16, 128, 1024)]
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(0.3 + 1023 * (1e-5 + 8e-4) + link.agreement(1024), rel=0.05)
    assert not any(math.isnan(step) for step in steps)
