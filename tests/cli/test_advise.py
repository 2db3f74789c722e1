import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hvd_compress import TopK, WarmUp, from_config, registry
from hvd_compress.cli import advise, catalogue, costs, forecast, subject
from hvd_compress.cli.cluster import ALLGATHER, Cluster
from hvd_compress.cli.costs import CollectiveCost, Cost, Measured

PNG = b"\x89PNG"
SLOW = ("--parameters", "2e6", "--step-time", "50ms", "--bandwidth", "100mbit", "--rounds", "1")
FAST = ("--parameters", "1e5", "--step-time", "500ms", "--bandwidth", "100gbit", "--latency", "1us", "--rounds", "1")


def test_on_a_slow_network_it_says_compress(command, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    ran = command("advise", "sidco", "topk", *SLOW, "--plot", picture)
    assert ran.code == 0, ran.err
    assert "Compress with 8 workers: " in ran.words
    for shown in ("Horovod uncompressed", "sidco", "2,000,000 parameters", "2,048", "efficiency"):
        assert shown in ran.out
    assert picture.read_bytes().startswith(PNG)


def test_where_there_is_nothing_to_win_it_says_so_and_ends_with_3(command) -> None:
    ran = command("advise", "sidco", *FAST, "--workers", "4")
    assert ran.code == 3, ran.err
    assert "Do not compress with 4 workers" in ran.words


def test_json(command) -> None:
    ran = command("advise", "sidco-0.001", *SLOW, "--workers", "6", "--json")
    found = ran.json
    assert ran.code == 0
    assert found["compress"]
    assert found["best"] == found["ranking"][0] == "sidco-0.001"
    assert {row["workers"] for row in found["rows"]} == {2, 4, 6, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}
    plain = next(row for row in found["rows"] if (row["candidate"], row["workers"]) == ("Horovod uncompressed", 6))
    # 2e6 parameters of 4 bytes, around the ring of 6, at 100 Mbit/s; little of it is hidden
    assert plain["ms"] == pytest.approx(2 * 5 / 6 * 8e6 * 8 / 100e6 * 1000, rel=0.1)
    assert plain["efficiency"] == pytest.approx(50 / plain["ms"])
    parts = [plain[f"{phase}_ms"] for phase in advise.PHASES]
    assert sum(parts) == pytest.approx(plain["ms"])


def test_a_module_is_timed(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 8))\n"
    )
    monkeypatch.chdir(tmp_path)
    ran = command(
        "advise", "topk", "--model", "mine:net", "--input", "16,64", "--bandwidth", "1mbit", "--rounds", "1", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json["model"]["parameters"] == 64 * 512 + 512 + 512 * 8 + 8
    assert ran.json["model"]["tensors"] == 4
    assert ran.json["model"]["step_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model MODULE:NAME, or --parameters and --step-time"),
        (["--parameters", "1e6"], "--parameters goes with --step-time"),
        (["--parameters", "1.5", "--step-time", "1s"], "--parameters must be a number of elements"),
        (["--parameters", "1e6", "--step-time", "1"], "is not a time like 120ms"),
        (["--parameters", "1e6", "--step-time", "0ms"], "--step-time must be more than 0"),
        (["--parameters", "1e6", "--step-time", "1s"], "give --bandwidth (and --latency), or --measure"),
        (["--parameters", "1e6", "--step-time", "1s", "--bandwidth", "fast"], "is not a rate like 10gbit"),
        (["--model", "json:loads", "--input", "a"], "json:loads"),
        (["--model", "json", "--input", "1"], "--model must be MODULE:NAME"),
        (["--model", "torch.nn:ReLU", "--input", "1"], "is not a torch.nn.Module with parameters"),
        (["--model", "json:loads"], "--model goes with --input"),
        (["--parameters", "1e6", "--step-time", "1s", "--bandwidth", "1gbit", "sidko"], "did you mean 'sidco'"),
        (["--parameters", "1e6", "--step-time", "1s", "--bandwidth", "1gbit", "lgc"], "changes from phase to phase"),
    ],
)
def test_wrong_usage(command, arguments: list[str], message: str) -> None:
    ran = command("advise", *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err


def test_measuring_needs_two_ranks() -> None:
    """In a process of its own: it starts MPI, and no mpirun would work below this one any more."""
    arguments = ["advise", "--parameters", "1e6", "--step-time", "1s", "--measure"]
    ran = subprocess.run(
        [sys.executable, "-m", "hvd_compress.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "mpirun -np 2" in ran.stderr


def test_all_configurations_and_compressors_are_candidates_in_their_last_state() -> None:
    found = costs.compressors()
    assert set(found) == {*catalogue.files(), *registry.names()} - {"lgc", "lgc-gather"}
    assert found["sidco-0.001"].ratio == 0.001
    assert costs.steady(TopK(WarmUp(0.02))).ratio == 0.02


@pytest.mark.parametrize("name", sorted(set(registry.BUILT_IN) - {"lgc"}))
def test_costs_of_every_compressor(name: str) -> None:
    algorithm = costs.steady(from_config(name))
    measured = costs.measure({name: algorithm}, 20_000, rounds=1)[name]
    assert len(measured.base.rounds) == len(algorithm.schedule)
    assert all(step.seconds > 0 and step.nbytes > 0 for step in measured.base.rounds)
    assert measured.base.decode > 0
    same = measured.at(algorithm, costs.GATHERED[0])
    if "randk" not in name:  # which sends another share of the coordinates in every step
        assert [r.nbytes for r in same.rounds] == [r.nbytes for r in measured.base.rounds]
    assert [r.kind for r in same.rounds] == [r.kind for r in measured.base.rounds]


def test_lanes_grow_with_workers_and_payloads_do_not() -> None:
    def sent(name: str, workers: int) -> int:
        return sum(nbytes for _, nbytes in costs.wire(from_config(name), 10_000, workers))

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
    measured = costs.measure({"few": few}, 5000, rounds=1)["few"]
    known = {n: {5000: measured.at(few, n)} for n in (100, 128)}
    model = forecast.Model([forecast.Tensor("w", 5000, 2, 1.0)], 0.1, 0.1, 0.0)
    found = {n: forecast.compressed(model, Cluster.of_link(1e9, 0.0), n, few, cost) for n, cost in known.items()}
    assert found[100].step > 0.2
    assert found[128].error == "at most 100 workers"


def test_costs_between_and_beyond_the_sizes_that_are_timed() -> None:
    small = Measured(1000, Cost((CollectiveCost(ALLGATHER, 100.0, 1.0),), 2.0), 0.1)
    large = Measured(3000, Cost((CollectiveCost(ALLGATHER, 300.0, 2.0),), 6.0), 0.3)
    middle = costs._on([small, large], 2000)
    assert middle.base == Cost((CollectiveCost(ALLGATHER, 200.0, 1.5),), 4.0)
    assert middle.growth == pytest.approx(0.2)
    beyond = costs._on([small, large], 6000)
    assert (beyond.n, beyond.base) == (6000, Cost((CollectiveCost(ALLGATHER, 600.0, 4.0),), 12.0))
    assert costs._on([small, large], 3000) == large


def test_a_model_of_numbers() -> None:
    model = subject.of_numbers(1_000_003, 0.3)
    assert model.parameters == 1_000_003
    assert model.step == pytest.approx(0.3)
    assert np.allclose(np.diff([tensor.ready for tensor in model.tensors]), 1 / len(model.tensors))
    assert subject.of_numbers(7, 1.0).parameters == 7


def test_the_advice_is_about_the_fastest_that_works() -> None:
    model = subject.of_numbers(10**6, 1.0)

    def took(seconds: float) -> dict[int, forecast.Forecast]:
        return {4: forecast.Forecast(compute=1.0, wait=seconds - 1.0)}

    found = {advise.UNCOMPRESSED: took(2.0), "a": took(1.2), "b": took(3.0), "c": {4: forecast.Forecast(error="no")}}
    said = advise.advice(found, model, 4)
    assert (said.best, said.compress) == ("a", True)
    assert said.text.endswith("Slower than uncompressed: b.")
    assert "1.67 times as fast" in said.text
    assert advise.advice({**found, "a": took(1.95)}, model, 4).text == (
        "Do not compress with 4 workers: uncompressed takes 2,000.0 ms a step, and the best, a, costs about what it "
        "saves (1,950.0 ms)."
    )
    assert advise.advice({**found, advise.FP16: took(1.22)}, model, 4).text.startswith("Horovod's own fp16 is enough")
    assert not advise.advice({advise.UNCOMPRESSED: took(1.02), "a": took(1.5)}, model, 4).compress
