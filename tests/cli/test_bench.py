import sys
from pathlib import Path

import pytest

from hvd_compress import TernGrad
from hvd_compress.cli import bench

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
        (["--size", "1e12"], "--size: a bucket has at most 4,294,967,295 elements, not 1,000,000,000,000"),
        (["--size", "inf"], "--size must be a number of elements"),
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


def test_without_matplotlib(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    ran = command("bench", "half", "--plot", "x.png")
    assert ran.code == 1
    assert "pip install 'hvd-compress[plot]'" in ran.err


def test_without_kernels(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine() -> None:
        raise ImportError("the C++ kernels cannot be loaded")

    monkeypatch.setattr(bench.machine, "describe", machine)
    ran = command("bench", "half")
    assert ran.code == 1
    assert "the C++ kernels cannot be loaded" in ran.err


def test_without_torch_numpy_adds(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = command("bench", "half", "--size", "5000", "--rounds", "1")
    assert ran.code == 0, ran.err
    assert "residual += gradient" in ran.out.split("\n", 3)[-1]


def test_goals_are_shown_instead_of_bytes() -> None:
    row = {"n": 10, "name": "SIDCo", "kind": "compressor", "ratio": 1.25, "quartiles": [1, 2], "us": 1, "sent_bytes": 4}
    assert list(bench.table([row], lambda name, n: 3.5).columns[1].cells) == ["1.25 (3.5)"]
    assert list(bench.table([row]).columns[1].cells) == ["1.25 (10.0x)"]


def test_a_size_that_does_not_fit_is_refused_before_anything_is_timed(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.machine, "memory_bytes", lambda: 16 * 10**9)
    ran = command("bench", "half", "--size", "1e9")
    assert (ran.code, ran.out) == (2, "")
    assert "--size: 1,000,000,000 elements take 32 GB of memory or more; this machine has 16 GB" in ran.err


def test_memory_that_runs_out_is_no_traceback(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise MemoryError("Unable to allocate 3.73 GiB")

    monkeypatch.setattr(bench, "run", run)
    ran = command("bench", "half", "--size", "5000")
    assert (ran.code, ran.out) == (2, "")
    assert "--size 5000: not enough memory: Unable to allocate" in ran.err


def test_what_cannot_be_timed_on_a_device(command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")
    monkeypatch.setattr(TernGrad, "runs_on_devices", False)
    for arguments, said in (
        (["half", "--device", "tpu"], "--device: "),
        (["terngrad", "--device", "cpu"], "TernGrad() does not compress on a device yet"),
    ):
        ran = command("bench", *arguments)
        assert ran.code == 2
        assert said in ran.err


def test_compressors_on_a_device(command) -> None:
    """By Triton's interpreter: that it works, and no timing of a GPU."""
    pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")
    ran = command("bench", "topk", "--device", "cpu", "--size", "2000", "--rounds", "1", "--no-kernels", "--json")
    assert ran.code == 0, ran.err
    assert [row["waits"] for row in ran.json["rows"]] == [0, 2]
    assert "no timing of a GPU" in ran.json["machine"]["device"]
