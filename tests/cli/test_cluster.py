"""The alpha-beta model, against cases computed by hand."""

import math

import pytest

from hvd_compress.cli import cluster, forecast
from hvd_compress.cli.cluster import ALLGATHER, ALLREDUCE, BROADCAST, Cluster
from hvd_compress.cli.costs import CollectiveCost, Cost
from hvd_compress.cli.forecast import Clock, Collective, Model, Tensor
from hvd_compress.compressor import Compressor

ALPHA, BETA = 1e-4, 1e-9  # 8 Gbit/s
LINK = Cluster.of_link(8 / BETA, ALPHA, overhead=0.0)


@pytest.mark.parametrize(
    ("kind", "nbytes", "workers", "expected"),
    [
        # the ring: 2 (N - 1) messages, 2 (N - 1) / N of the bytes
        (ALLREDUCE, 8e6, 8, 14 * ALPHA + 14 * 1e6 * BETA),
        (ALLREDUCE, 1e9, 2, 1 * ALPHA + 1e9 * BETA),  # doubling: one message with everything beats two with halves
        (ALLREDUCE, 8, 1024, 10 * (ALPHA + 8 * BETA)),  # small: log2 N messages with everything
        (ALLGATHER, 1e6, 8, 7 * (ALPHA + 1e6 * BETA)),
        (ALLGATHER, 1e6, 2, ALPHA + 1e6 * BETA),
        (ALLGATHER, 100, 8, 3 * ALPHA + 700 * BETA),  # small: log2 N messages
        (BROADCAST, 1e6, 8, 3 * (ALPHA + 1e6 * BETA)),
        (BROADCAST, 1e6, 5, 3 * (ALPHA + 1e6 * BETA)),
        (ALLREDUCE, 1e6, 1, 0.0),
    ],
)
def test_collectives(kind: str, nbytes: float, workers: int, expected: float) -> None:
    assert LINK.transfer(kind, nbytes, workers) == pytest.approx(expected)


def test_payloads_of_all_workers_pass_in_a_gather_and_not_in_a_reduction() -> None:
    """At ratio r an all-gather of 7.5 r d bytes meets an all-reduce of 4 d at about N r = 1."""
    link = Cluster.of_link(1e9, 0.0, overhead=0.0)
    gathered = [link.transfer(ALLGATHER, 0.075 * 1e6, n) for n in (100, 110)]
    reduced = [link.transfer(ALLREDUCE, 4 * 1e6, n) for n in (100, 110)]
    assert gathered[0] < reduced[0] < reduced[1] < gathered[1]


def test_agreement_takes_a_message_up_and_down_for_each_doubling() -> None:
    link = Cluster.of_link(1e9, ALPHA, overhead=0.001)
    assert [link.agreement(n) for n in (2, 8, 1024)] == pytest.approx([0.001, 0.001 + 4 * ALPHA, 0.001 + 18 * ALPHA])


def test_constants_from_measurements() -> None:
    """Between 4 workers whose link is known, the constants are found again, and predict for 8."""
    true = Cluster.of_link(2e9, 5e-5, overhead=0.002)
    points = {
        kind: {n: 0.002 + true.transfer(kind, n, 4) for n in (65536, 2**20, 2**24)} for kind in (ALLREDUCE, ALLGATHER)
    }
    small = {kind: {64: 0.002 + cluster.messages(kind, 4, 64) * 5e-5} for kind in points}
    found = cluster.of_measurements(4, 5e-5, {k: small[k] | points[k] for k in points}, 1e-5, {}, 1.0)
    assert found.overhead == pytest.approx(0.002)
    for kind in (ALLREDUCE, ALLGATHER, BROADCAST):
        assert found.transfer(kind, 10**7, 8) == pytest.approx(true.transfer(kind, 10**7, 8), rel=0.02)


def one_tensor(size: int, step: float = 0.3) -> Model:
    return Model([Tensor("w", size, 2, 1.0)], step / 3, 2 * step / 3, 0.0)


def test_nothing_to_hide_behind() -> None:
    """A single gradient comes at the end: the step is the computation, the overhead, and the transfer."""
    link = Cluster.of_link(8 / BETA, ALPHA, overhead=0.001)
    found = forecast.direct(one_tensor(10**7), link, 8, None)
    assert found.compute == pytest.approx(0.3)
    assert found.wait == pytest.approx(0.001 + 2 * 4 * ALPHA / 2 + 14 * ALPHA + 1.75 * 4e7 * BETA)
    assert found.step == pytest.approx(found.compute + found.wait)


def test_communication_hides_behind_the_backward_pass() -> None:
    """The first of two gradients comes halfway: what of its transfer (0.08 s) fits into the other half (0.05 s) is
    hidden, the second's waits for the rest."""
    model = Model([Tensor("b", 10**7, 2, 0.5), Tensor("a", 10**7, 2, 1.0)], 0.1, 0.1, 0.0)
    link = Cluster.of_link(4e9, 0.0, overhead=0.0)
    found = forecast.direct(model, link, 2, None)
    assert found.step == pytest.approx(0.15 + 0.08 + 0.08)
    assert found.wait == pytest.approx(0.11)


def test_horovod_fuses_what_waits() -> None:
    """Three gradients that come together pay the overhead once."""
    model = Model([Tensor(str(i), 1000, 2, 1.0) for i in range(3)], 0.1, 0.1, 0.0)
    link = Cluster.of_link(8e9, 0.0, overhead=0.01)
    assert forecast.direct(model, link, 2, None).wait == pytest.approx(0.01 + 12000 * 1e-9)


class Everything(Compressor):
    """For the layout of buckets only."""

    name = "everything"


def test_an_exchange_by_hand() -> None:
    """Two rounds, 10 and 20 ms of computation before them, 30 ms after; one bucket that comes at the end.

    step 300 + 10 + (5 + 1) + 20 + (5 + 8) + 30 ms. The token's all-reduce begins at once, and is through (5 ms) before
    the first round is compressed. Compression is on a thread of its own, for which the step waits.
    """
    link = Cluster.of_link(8e9, 0.0, overhead=0.005)
    cost = Cost((CollectiveCost(ALLREDUCE, 1e6, 0.010), CollectiveCost(ALLREDUCE, 8e6, 0.020)), 0.030)
    found = forecast.compressed(one_tensor(10**6), link, 2, Everything(), {10**6: cost})
    assert found.beside == pytest.approx(0.030)
    assert found.compress == 0
    assert found.decompress == pytest.approx(0.030)
    assert found.wait == pytest.approx(0.030 + 0.006 + 0.013, abs=1e-5)
    assert found.step == pytest.approx(0.3 + 0.030 + 0.030 + 0.019, abs=1e-5)


def test_the_last_bucket_waits_for_every_gradient_and_the_first_does_not() -> None:
    model = Model(
        [Tensor("c", 5_000_000, 2, 0.5), Tensor("b", 5_000_000, 2, 0.75), Tensor("bias", 10, 1, 1.0)], 0.0, 1.0, 0.0
    )
    link = Cluster.of_link(8e9, 0.0, overhead=0.0)
    cost = Cost((CollectiveCost(ALLGATHER, 4e8, 0.0),), 0.0)  # 0.4 s each
    found = forecast.compressed(model, link, 2, Everything(), {5_000_000: cost})
    assert found.step == pytest.approx(1.0 + 0.4, abs=1e-4)  # the first from 0.5 to 0.9, the second from 1.0 to 1.4


def test_computation_and_transfers_slow_each_other_down() -> None:
    """A transfer of 1 s beside computation of 2 s, twice and 1.5 times as slow together: the transfer ends after 2 s,
    in which 2 / 1.5 s were computed."""
    link = Cluster(0.0, dict.fromkeys(cluster.KINDS, ((1.0, 1e-9),)), 0.0, busy={ALLREDUCE: 2.0}, slowdown=1.5)
    clock = Clock(link, 2)
    collective = clock.start(Collective(ALLREDUCE, 1e9))
    assert clock.work(2.0) == pytest.approx(2.0 + (2.0 - 2.0 / 1.5))
    assert collective.done
    assert clock.wait(lambda: collective.done) == 0


def test_compression_beside_the_backward_pass_costs_nothing_but_the_last_bucket() -> None:
    """Two buckets, each 100 ms to compress, at 0.5 and 1 s: the first is hidden. One core: it is not."""
    model = Model([Tensor("b", 5_000_000, 2, 0.5), Tensor("a", 5_000_000, 2, 1.0)], 0.0, 1.0, 0.0)
    known = {5_000_000: Cost((CollectiveCost(ALLGATHER, 1.0, 0.1),), 0.02)}
    for cores, step in ((math.inf, 1.0 + 0.1 + 0.04), (1.0, 1.1 + 0.1 + 0.04)):
        link = Cluster(0.0, dict.fromkeys(cluster.KINDS, ((1.0, 1e-9),)), 0.0, cores=cores)
        found = forecast.compressed(model, link, 2, Everything(), known)
        assert found.step == pytest.approx(step, abs=1e-4)
        assert found.beside == pytest.approx(0.2)


def test_efficiency_falls_with_payloads_that_add_up() -> None:
    cost = Cost((CollectiveCost(ALLGATHER, 1e6, 0.0),), 0.0)
    link = Cluster.of_link(10e9, 1e-5)
    steps = [
        forecast.compressed(one_tensor(10**6), link, n, Everything(), {10**6: cost}).step for n in (2, 16, 128, 1024)
    ]
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(0.3 + 1023 * (1e-5 + 8e-4) + link.agreement(1024), rel=0.05)
    assert not any(math.isnan(step) for step in steps)
