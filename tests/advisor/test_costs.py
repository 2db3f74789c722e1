import pytest

from hvd_compress import Compressor, TopK, from_config, registry
from hvd_compress.advisor import cost_benchmark
from hvd_compress.advisor.candidates import steady
from hvd_compress.advisor.cluster import ALLGATHER, Cluster
from hvd_compress.advisor.cost_benchmark import measure_exchanges
from hvd_compress.advisor.costs import (
    GATHERED,
    CollectiveCost,
    ExchangeCost,
    MeasuredCost,
    collectives,
    interpolated,
)
from hvd_compress.advisor.exchange_timing import TimedExchange
from hvd_compress.advisor.forecast import compressed
from hvd_compress.advisor.model import Gradient, Model


@pytest.mark.parametrize("name", sorted(set(registry.BUILT_IN) - {"auto", "lgc"}))
def test_costs_of_every_compressor(name: str) -> None:
    _check_costs(name, steady(from_config(name)), 20_000)


@pytest.mark.parametrize("n", [2000, 20_000, 341_056])
@pytest.mark.parametrize("name", ["topk", "sidco"])
def test_costs_of_entries_summed_by_the_owners_of_their_regions(name: str, n: int) -> None:
    """Regions are of different sizes here."""
    _check_costs(name, from_config({"name": name, "aggregate": "reduce-scatter"}), n)


@pytest.mark.parametrize("name", ["topk", "sidco"])
def test_only_what_is_gathered_of_every_worker_takes_longer_to_decode_with_more(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker more seems to take a second more, whatever is decoded."""

    class SlowExchange(TimedExchange):
        def run(self):
            exchanged, seconds = super().run()
            return exchanged, [*seconds[:-1], float(self._workers)]

    monkeypatch.setattr(cost_benchmark, "TimedExchange", SlowExchange)
    ways = {way: from_config({"name": name, "aggregate": way}) for way in ("reduce-scatter", "all-gather")}
    measured = measure_exchanges(ways, 20_000, rounds=1)
    assert {way: cost.growth for way, cost in measured.items()} == {"reduce-scatter": 0, "all-gather": 1}


def _check_costs(name: str, algorithm: Compressor, n: int) -> None:
    measured = measure_exchanges({name: algorithm}, n, rounds=1)[name]
    assert len(measured.base.rounds) == len(algorithm.schedule)
    assert all(step.seconds > 0 and step.nbytes > 0 for step in measured.base.rounds)
    assert measured.base.decode > 0
    same = measured.at(algorithm, GATHERED[0])
    if "randk" not in name:  # which sends another share of the coordinates in every step
        assert [r.nbytes for r in same.rounds] == pytest.approx([r.nbytes for r in measured.base.rounds], rel=1e-3)
    assert [r.kind for r in same.rounds] == [r.kind for r in measured.base.rounds]


def test_lanes_grow_with_workers_and_payloads_do_not() -> None:
    def sent(name: str, workers: int) -> int:
        return sum(nbytes for _, nbytes in collectives(from_config(name), 10_000, workers))

    assert sent("sidco", 2) == sent("sidco", 1000)
    assert sent("qsgd-maxnorm", 2) < sent("qsgd-maxnorm", 1000)


class Few(TopK):
    """Works among a few workers."""

    def exchange(self, bucket):
        if bucket.workers > 100:
            raise ValueError("at most 100 workers")
        return super().exchange(bucket)


def test_too_many_workers_for_a_compressor_are_no_forecast() -> None:
    few = Few(0.1)
    measured = measure_exchanges({"few": few}, 5000, rounds=1)["few"]
    known = {n: {5000: measured.at(few, n)} for n in (100, 128)}
    model = Model([Gradient("w", (50, 100), 1.0)], 0.1, 0.1, 0.0)
    found = {n: compressed(model, Cluster.of_link(1e9, 0.0), n, few, cost) for n, cost in known.items()}
    assert found[100].step > 0.2
    assert found[128].error == "at most 100 workers"


def test_costs_between_and_beyond_the_sizes_that_are_timed() -> None:
    small = MeasuredCost(1000, ExchangeCost((CollectiveCost(ALLGATHER, 100.0, 1.0),), 2.0), 0.1)
    large = MeasuredCost(3000, ExchangeCost((CollectiveCost(ALLGATHER, 300.0, 2.0),), 6.0), 0.3)
    middle = interpolated([small, large], 2000)
    assert middle.base == ExchangeCost((CollectiveCost(ALLGATHER, 200.0, 1.5),), 4.0)
    assert middle.growth == pytest.approx(0.2)
    beyond = interpolated([small, large], 6000)
    assert (beyond.n, beyond.base) == (6000, ExchangeCost((CollectiveCost(ALLGATHER, 600.0, 4.0),), 12.0))
    assert interpolated([small, large], 3000) == large
