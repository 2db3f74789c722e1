import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from hvd_compress import from_config, registry
from hvd_compress.cli import bench, catalogue, costs

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG"


def test_a_table_and_a_picture(command, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    ran = command("bench", "sidco", "half", "--size", "20000", "--size", "3e4", "--rounds", "1", "--plot", picture)
    assert ran.code == 0, ran.err
    for shown in ("n = 20,000", "n = 30,000", "residual.add_(gradient)", "SIDCo()", "Half()", "(2.0x)", "decode of 4"):
        assert shown in ran.out
    assert picture.read_bytes().startswith(PNG)


def test_json_without_torch_and_kernels(command) -> None:
    ran = command("bench", "topk", "--size", "20,000", "--rounds", "1", "--no-torch", "--no-kernels", "--json")
    assert ran.code == 0, ran.err
    unit, topk = ran.json["rows"]
    assert (unit["name"], unit["kind"], unit["ratio"]) == ("residual += gradient", "unit", 1)
    assert (topk["name"], topk["kind"], topk["n"]) == ("TopK()", "compressor", 20000)
    assert topk["us"] > 0
    assert topk["quartiles"][0] <= topk["ratio"] <= topk["quartiles"][1]
    assert 6 * 200 <= topk["sent_bytes"] < 6 * 200 + 64
    assert ran.json["machine"]["threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sidko"], "did you mean 'sidco'"),
        (["missing.yaml"], "missing.yaml"),
        (["--size", "many"], "--size must be a number of elements"),
        (["--size", "0"], "--size"),
        (["--ratio", "2"], "--ratio must be in (0, 1]"),
        (["--plot", "no/such/folder/x.png"], "is not a folder"),
        (["--plot", "x.doc"], "must end with .png"),
    ],
)
def test_wrong_usage(command, arguments: list[str], message: str) -> None:
    ran = command("bench", *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err


def test_what_has_phases_cannot_be_timed() -> None:
    assert len(bench.algorithms()) == len(registry.BUILT_IN) - 1
    with pytest.raises(ValueError, match="what lgc sends and costs changes from phase to phase"):
        bench.algorithms(["topk", "lgc"])


@pytest.mark.parametrize("name", sorted(set(registry.BUILT_IN) - {"lgc"}))
def test_a_step_can_be_repeated(name: str) -> None:
    """A candidate's step leaves what the next one begins with: the memory and the gradient, as restored."""
    inputs = bench.Inputs(5000)
    candidate = bench.compressor(inputs, name, from_config(name))
    payloads = []
    for _ in range(2):
        inputs.restore(candidate)
        collectives = candidate.run()
        assert len(collectives) == len(from_config(name).schedule)
        assert sum(bench.array(collective).nbytes for collective in collectives) == candidate.sent_bytes
        payloads.append(collectives)
        assert np.array_equal(inputs.gradient, inputs.original_gradient)
        if candidate.residual is not None:
            assert np.array_equal(candidate.residual, inputs.original_residual)


def test_without_matplotlib(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    ran = command("bench", "half", "--plot", "x.png")
    assert ran.code == 1
    assert "pip install 'hvd-compress[plot]'" in ran.err


def test_without_kernels(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine() -> None:
        raise ImportError("the C++ kernels cannot be loaded")

    monkeypatch.setattr(bench, "machine", machine)
    ran = command("bench", "half")
    assert ran.code == 1
    assert "the C++ kernels cannot be loaded" in ran.err


def test_without_torch_numpy_adds(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = command("bench", "half", "--size", "5000", "--rounds", "1")
    assert ran.code == 0, ran.err
    assert "residual += gradient" in ran.out.split("\n", 3)[-1]


def test_the_project_s_own_candidates_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/kernels.py, at a size for which there are no goals."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kernels = importlib.import_module("kernels")
    inputs = bench.Inputs(20_000)
    rows = bench.measure(inputs, kernels.candidates(inputs, peers_only=False), rounds=1)
    assert rows[0]["kind"] == bench.UNIT
    assert all((row["kind"] == bench.PEER) == row["name"].startswith("torch") for row in rows)
    for start in kernels.GOALS:
        assert any(row["name"].startswith(start) for row in rows), start
    assert kernels.goal("SIDCo 0.01, pareto", 4_000_000) == kernels.GOALS["SIDCo"][1]


def test_small_sizes_get_more_rounds() -> None:
    assert [bench.rounds_for(n, 5) for n in (1000, 2_000_000, 30_000_000)] == [50, 15, 5]


def test_goals_are_shown_instead_of_bytes() -> None:
    row = {"n": 10, "name": "SIDCo", "kind": "compressor", "ratio": 1.25, "quartiles": [1, 2], "us": 1, "sent_bytes": 4}
    assert list(bench.table([row], lambda name, n: 3.5).columns[1].cells) == ["1.25 (3.5)"]
    assert list(bench.table([row]).columns[1].cells) == ["1.25 (10.0x)"]


def test_what_cannot_be_loaded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """LGC without torch, say; it is named by ``list``, with what to install."""
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest))
    assert len(bench.algorithms()) == len(registry.BUILT_IN) - 1
    assert "lgc" not in costs.compressors()
    assert "pip install 'hvd-compress[lgc]'" in catalogue.entry("lgc").error
