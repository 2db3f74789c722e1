import pytest

from hvd_compress import QSGDMaxNorm, SIDCo, TopK, TwoLevel
from hvd_compress.advisor import advice, cost_benchmark, machine
from hvd_compress.advisor.cluster import Cluster
from hvd_compress.advisor.device_timing import inputs_on
from hvd_compress.advisor.forecast import Forecast
from hvd_compress.advisor.model import of_parameter_count


def test_the_advice_is_about_the_fastest_that_works() -> None:
    model = of_parameter_count(10**6, 1.0)

    def took(seconds: float) -> dict[int, Forecast]:
        return {4: Forecast(compute=1.0, wait=seconds - 1.0)}

    found = {advice.UNCOMPRESSED: took(2.0), "a": took(1.2), "b": took(3.0), "c": {4: Forecast(error="no")}}
    said = advice.advice(found, model, 4)
    assert (said.best, said.compress) == ("a", True)
    assert said.text.endswith("Slower than uncompressed: b.")
    assert "1.67 times as fast" in said.text
    assert advice.advice({**found, "a": took(1.95)}, model, 4).text == (
        "Do not compress with 4 workers: uncompressed takes 2,000.0 ms a step, and the best, a, costs about what it "
        "saves (1,950.0 ms)."
    )
    assert advice.advice({**found, advice.FP16: took(1.22)}, model, 4).text.startswith("Horovod's own fp16 is enough")
    assert not advice.advice({advice.UNCOMPRESSED: took(1.02), "a": took(1.5)}, model, 4).compress
    assert advice.advice({**found, "a": took(2.5)}, model, 4).text == (
        "Do not compress with 4 workers: uncompressed takes 2,000.0 ms a step, and nothing is faster."
    )


def test_a_sparsifier_is_not_recommended_without_a_word_about_adam() -> None:
    model = of_parameter_count(10**6, 1.0)

    def took(seconds: float, selects: bool = False) -> dict[int, Forecast]:
        return {4: Forecast(compute=1.0, wait=seconds - 1.0, selects=selects)}

    found = {advice.UNCOMPRESSED: took(2.0), "few": took(1.2, selects=True), "all": took(1.5)}
    text = "Under Adam or AdamW a model may learn much more slowly with few, which sends few elements in a step"
    assert f"{text}; all sends all of them (1,500.0 ms)." in advice.advice(found, model, 4).text
    assert f"{text}, and nothing that sends all of them pays here." in (
        advice.advice({**found, "all": took(1.95)}, model, 4).text
    )
    assert "Adam" not in advice.advice({**found, "all": took(1.1)}, model, 4).text


def test_forecasts_know_who_sends_some_of_the_elements() -> None:
    cluster = Cluster.of_link(1e9, 1e-5)
    algorithms = {"sidco": SIDCo(0.01), "topk": TopK(0.01), "codes": QSGDMaxNorm(8)}
    algorithms |= {f"two-level {name}": TwoLevel(algorithm) for name, algorithm in algorithms.items()}
    found = advice.predict(of_parameter_count(2048, 0.001), cluster, algorithms, (2,), rounds=1)
    assert {name: found[name][2].selects for name in algorithms} == {name: "codes" not in name for name in algorithms}


def test_nodes_of_several_workers_have_links_of_their_own() -> None:
    """A slow link between nodes, a fast one within them: shares save nothing without nodes, and much with them."""
    slow, model = Cluster.of_link(1e6, 1e-5), of_parameter_count(2_000_000, 0.001)
    nodes = slow.with_nodes(4, bandwidth=1e11, latency=1e-6)
    algorithms = {"sidco": SIDCo(0.01), "two-level": TwoLevel(SIDCo(0.01))}

    def waits(cluster: Cluster) -> dict[str, dict[int, float]]:
        found = advice.predict(model, cluster, algorithms, (4, 8), rounds=1)
        return {name: {workers: one.wait for workers, one in line.items()} for name, line in found.items()}

    flat, shared = waits(slow), waits(nodes)
    assert flat["two-level"][8] == pytest.approx(flat["sidco"][8], rel=0.1)
    assert shared["sidco"][8] == pytest.approx(flat["sidco"][8], rel=0.1)
    assert shared["two-level"][8] < shared["sidco"][8] / 3  # one payload of each place, against seven
    assert shared["two-level"][4] < flat["two-level"][4] / 10  # a single node


def test_spread_is_that_of_the_candidates_that_were_measured() -> None:
    def varied(spread: float) -> dict[int, Forecast]:
        return {2: Forecast(compute=1.0, spread=spread), 4: Forecast(compute=1.0, spread=spread)}

    assert advice.spread({advice.UNCOMPRESSED: varied(0.0)}) == 0
    assert (
        advice.spread({advice.UNCOMPRESSED: varied(0.0), "a": varied(0.1), "b": varied(0.1), "c": varied(0.9)}) == 0.1
    )


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine.warning(3.0, 0.1) == ""
    assert machine.warning(3.1, 0.1).startswith("This machine is busy (its load was 3.1 on 4 cores), so that")
    assert "(times differed by 40 %)" in machine.warning(0.0, 0.4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert machine.warning(0.4, 0.0) == ""
    assert machine.warning(0.6, 0.0) != ""


def test_times_that_differ() -> None:
    assert cost_benchmark.spread_of([1.0, 2.0, 3.0]) == 0
    assert cost_benchmark.spread_of([1.0] * 6) == 0
    assert cost_benchmark.spread_of([1.0, 1.0, 2.0, 3.0, 3.0]) == 1.0


def test_costs_of_a_device() -> None:
    """By Triton's interpreter: exchanges are measured there, and send what they send here."""
    pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")
    algorithms = {"topk": TopK(0.05), "codes": QSGDMaxNorm(8)}

    def sent(measured: dict[str, cost_benchmark.MeasuredCost]) -> list[tuple[str, int]]:
        return [(one.kind, one.nbytes) for name in algorithms for one in measured[name].base.rounds]

    there = cost_benchmark.measure_exchanges(algorithms, 2048, 1, make_inputs=inputs_on("cpu"))
    assert sent(there) == sent(cost_benchmark.measure_exchanges(algorithms, 2048, 1))
    found = advice.predict(
        of_parameter_count(2048, 0.001), Cluster.of_link(1e9, 1e-5), algorithms, (2,), 1, device="cpu"
    )
    assert not any(line[2].error for line in found.values())
