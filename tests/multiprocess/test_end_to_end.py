"""benchmarks/end_to_end.py: its short form, what it refuses, and what is made of its figures."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.ranks.launching import ROOT, launch

pytestmark = pytest.mark.multiprocess
BENCHMARK = str(ROOT / "benchmarks" / "end_to_end.py")
CANDIDATES = [
    "no communication",
    "Horovod uncompressed",
    "Horovod fp16",
    "DDP PowerSGD rank 1",
    "dense",
    "sidco",
    "qsgd-maxnorm",
    "Auto",
]

of_a_run = pytest.mark.long  # a run of all candidates takes 20 seconds


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of a smoke run."""
    out = tmp_path_factory.mktemp("end_to_end") / "smoke.json"
    arguments = [BENCHMARK, "--smoke", "--auto", "--out", str(out)]
    done = launch("mpirun", 2, arguments, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:]
    return out


@of_a_run
def test_smoke(smoke: Path) -> None:
    content = json.loads(smoke.read_text())
    rows = content["rows"]
    assert [row["candidate"] for row in rows] == CANDIDATES
    for row in rows:
        assert row["ms"] > 0
        assert row["ratio"] == pytest.approx(row["ms"] / rows[0]["ms"])
        assert row["steps"] == sum(map(len, row["turns_ms"].values())) > 0
    sent = {row["candidate"]: row["sent_mb"] for row in rows if "sent_mb" in row}
    assert sent["dense"] == pytest.approx(343_322 * 4 / 1e6, rel=0.01)
    assert sent["sidco"] < sent["qsgd-maxnorm"] < sent["dense"]
    chosen = rows[-1]["auto"]
    assert chosen["choice"] in [row["candidate"] for row in chosen["table"]]
    assert content["links"][0]["per_gradient"] >= 0
    profile = content["models"][0]["profile"]
    assert len(profile["tensors"]) == 29
    ready = [tensor["ready"] for tensor in profile["tensors"]]
    assert ready == sorted(ready)
    assert profile["tensors"][0]["name"].startswith("8.")  # the last layer's gradients come first


@of_a_run
def test_what_is_there_is_not_measured_again(smoke: Path) -> None:
    before = smoke.read_text()
    done = launch("mpirun", 2, [BENCHMARK, "--smoke", "--auto", "--out", str(smoke)], timeout=100)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(smoke.read_text())["rows"] == json.loads(before)["rows"]


@of_a_run
def test_a_file_of_other_options_is_refused_on_every_rank(smoke: Path) -> None:
    done = launch("mpirun", 2, [BENCHMARK, "--smoke", "--batch", "4", "--out", str(smoke)], timeout=100)
    assert done.returncode != 0
    assert "is of a run with other options" in done.stdout
    assert "Traceback" not in done.stdout


@of_a_run
def test_table_picture_and_predictions(smoke: Path, tmp_path: Path) -> None:
    for script in ("end_to_end_report.py", "predictions.py"):
        path = str(ROOT / "benchmarks" / script)
        done = launch("alone", 1, [path, str(smoke), "--out", str(tmp_path / script)], timeout=100)
        assert done.returncode == 0, done.stdout[-3000:]
        assert (tmp_path / script).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        table = (tmp_path / script).with_suffix(".md").read_text()
        assert "| ResNet | qsgd-maxnorm |" in table
    assert "Within 15 %: " in table
    assert table.count("| ResNet |") == 5  # all but the step without communication and DDP


@of_a_run
def test_auto_beside_fixed_choices(smoke: Path, tmp_path: Path) -> None:
    out = tmp_path / "auto"
    path = str(ROOT / "benchmarks" / "auto_report.py")
    done = launch("alone", 1, [path, str(smoke), "--out", str(out)], timeout=100)
    assert done.returncode == 0, done.stdout[-3000:]
    table = out.with_suffix(".md").read_text()
    rows = {row["candidate"]: row for row in json.loads(smoke.read_text())["rows"]}
    assert f"| 1 x 2 | as it is | ResNet | {rows['Horovod uncompressed']['ms']:,.0f} |" in table
    assert f"| 1 x 2 | ResNet | sidco | {rows['sidco']['sent_mb']:.3f} | 0.000 | 0.000 |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data-dir, or --synthetic-tokens"),
        pytest.param(
            ["--data-dir", "no/such/folder"], "holds neither ptb.train.txt nor ptb.valid.txt", marks=pytest.mark.long
        ),
        pytest.param(["--models", "ResNet", "--candidates", "sidko"], "did you mean 'sidco'", marks=pytest.mark.long),
        (["--models", "ResNet", "--rates", "1gbit"], "--rates needs two hosts"),
    ],
)
def test_refused(arguments: list[str], message: str) -> None:
    done = launch("alone", 1, [BENCHMARK, *arguments], timeout=100)
    assert done.returncode != 0
    assert message in done.stdout


@pytest.mark.long
def test_the_link_of_an_emulated_host_changes_its_rate(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("tc") is None:
        pytest.skip("emulated hosts need root and iproute2")
    out = tmp_path / "out.json"
    emulate = [str(ROOT / "launch" / "emulate.sh"), "--hosts", "2", "--rate", "unlimited", "--"]
    arguments = [*emulate, sys.executable, BENCHMARK, "--smoke", "--candidates", "half", "--rates", "20mbit"]
    done = launch("alone", 1, ["-c", RUN, *arguments, "unlimited", "--out", str(out)], timeout=170)
    if "may not make namespaces" in done.stdout:
        pytest.skip("this root may not make namespaces")
    assert done.returncode == 0, done.stdout[-3000:]
    times = {(row["rate"], row["candidate"]): row["ms"] for row in json.loads(out.read_text())["rows"]}
    # 1.37 MB take no less than 549 ms at 20 Mbit/s, half of it 275 ms
    assert times["20mbit", "Horovod uncompressed"] > 400
    assert times["20mbit", "half"] > 200
    assert {rate for rate, _ in times} == {"20mbit", "unlimited"}


RUN = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
