"""The alpha-beta model, against cases computed by hand."""

import json

import pytest

from hvd_compress.advisor import cluster
from hvd_compress.advisor.cluster import ALLGATHER, ALLREDUCE, BROADCAST, Cluster

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
    found = cluster.of_measurements(4, 5e-5, {k: small[k] | points[k] for k in points}, 1e-5, {}, 1.0, 1e-4)
    assert (found.per_tensor, found.per_gradient) == (1e-5, 1e-4)
    assert found.overhead == pytest.approx(0.002)
    for kind in (ALLREDUCE, ALLGATHER, BROADCAST):
        assert found.transfer(kind, 10**7, 8) == pytest.approx(true.transfer(kind, 10**7, 8), rel=0.02)


def test_what_is_written_as_json_is_json() -> None:
    cluster = Cluster.of_link(1e9, 1e-5).with_nodes(4, bandwidth=1e11, latency=1e-6)
    written = json.dumps(cluster.as_json(), allow_nan=False)
    assert json.loads(written)["local"]["cores"] is None
