import re
import subprocess
import sys
from pathlib import Path

import pytest

from hvd_compress.advisor import advice, torch_model
from hvd_compress.advisor.forecast import Forecast
from hvd_compress.advisor.model import of_parameter_count
from hvd_compress.cli import advise

ROOT = Path(__file__).resolve().parents[2]
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
    parts = [plain[f"{phase}_ms"] for phase in advice.PHASES]
    assert sum(parts) == pytest.approx(plain["ms"])


def test_nodes_of_several_workers(command) -> None:
    nodes = ("--ranks-per-node", "4", "--local-bandwidth", "200gbit", "--local-latency", "3us")
    ran = command("advise", "two-level", *SLOW, *nodes, "--workers", "16", "--json")
    assert ran.code == 0, ran.err
    cluster = ran.json["cluster"]
    assert cluster["ranks_per_node"] == 4
    assert cluster["local"]["latency"] == 3e-6
    for link, bandwidth in ((cluster["link"], 100e6), (cluster["local"]["link"], 200e9)):
        assert link["allreduce"] == [[1.0, pytest.approx(8 / bandwidth)]]
    assert ran.json["best"] == "two-level"


def test_a_busy_machine_is_warned_of(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    ran = command("advise", "half", *SLOW)
    assert ran.err.startswith("Warning: This machine is busy (its load was 99.0 on")
    assert "busy" not in ran.out
    assert command("advise", "half", *SLOW, "--json").json["warning"].startswith("This machine is busy")


def test_the_beginning_of_a_name_is_enough_to_be_told(command) -> None:
    ran = command("advise", "qsgd", *SLOW)
    assert ran.code == 2
    assert "unknown compressor 'qsgd' (did you mean 'qsgd-maxnorm'?)" in " ".join(ran.err.split())


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


def test_the_first_command_of_the_docs_finds_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (path,) = re.findall(
        r"hvd-compress advise --model (\S+)", (ROOT / "docs" / "advise.md").read_text(encoding="utf-8")
    )
    assert torch_model.of_module(torch_model.load(path), 1.0).parameters == 343_322


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("words", ["--input", "4,7"], "the model takes whole numbers: give --vocabulary"),
        (
            "words",
            ["--input", "4,7", "--vocabulary", "1000"],
            "--vocabulary 1000 is more than the model's embedding has",
        ),
        ("net", ["--input", "4,7"], "the model cannot take numbers of --input 4,7: mat1 and mat2 shapes cannot"),
        (
            "net",
            ["--input", "4,8", "--vocabulary", "9"],
            "the model cannot take whole numbers below 9 of --input 4,8: ",
        ),
        ("rnn", ["--input", "4,7"], "the model takes whole numbers: give --vocabulary"),
    ],
)
def test_inputs_that_a_model_does_not_take(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str], message: str
) -> None:
    (tmp_path / "wrong.py").write_text(
        "from torch import nn\nwords = nn.Embedding(50, 8)\nnet = nn.Linear(8, 3)\n"
        "class RNN(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words, self.rnn = nn.EmbeddingBag(50, 8), nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        return self.rnn(self.words(x))\n"
        "rnn = RNN\n"
    )
    monkeypatch.chdir(tmp_path)
    ran = command("advise", "half", "--model", f"wrong:{name}", *arguments, "--bandwidth", "1gbit")
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


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
        (
            ["--parameters", "1e6", "--step-time", "1s", "--bandwidth", "1gbit", "--ranks-per-node", "4"],
            "--ranks-per-node goes with --local-bandwidth",
        ),
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


def test_what_does_not_work_is_said_below_the_table() -> None:
    found = {advice.UNCOMPRESSED: {4: Forecast(compute=1.0)}, "few [x]": {4: Forecast(error="at most [3] workers")}}
    table = advise.table(found, of_parameter_count(10**6, 1.0), 4)
    assert str(table.caption).endswith("few \\[x] does not work: at most [3] workers")
    assert list(table.columns[1].cells)[1] == "-"
