import json
from pathlib import Path
from typing import Any

import pytest

from tests.examples import board
from tests.examples.conftest import ROOT
from tests.ranks import programs
from tests.ranks.launching import launch
from tests.ranks.scenario import Job
from tests.ranks.server import Server

pytest.importorskip("horovod.torch")
pytestmark = [pytest.mark.multiprocess, pytest.mark.parametrize("job", [Job("torch", "mpirun", 2)], ids=str)]
PROGRAM = ROOT / "examples" / "train_torch.py"
TINY = ["--data", "digits", "--train-limit", "512", "--lr", "0.1", "--epochs", "2", "--threads", "1"]
MLP = [*TINY, "--model", "mlp", "--width", "64"]


def train(server: Server, job: Job, record: Path, *arguments: str) -> dict[str, Any]:
    done = programs.run(server, job, PROGRAM, "--record", str(record), *arguments)
    assert done.status == 0, done.said
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def test_uncompressed(server: Server, job: Job, tmp_path: Path) -> None:
    record = train(server, job, tmp_path / "none.json", *TINY)
    assert record["complete"]
    assert record["compression"] == "none"
    assert record["stats"] is None
    assert record["ranks"] == 2
    assert record["steps"]["sent_bytes"] == [4 * record["model"]["parameters"]] * 16
    assert record["epochs"][-1]["test_accuracy"] > 0.3


def test_a_resumed_run_ends_with_the_same_weights(server: Server, job: Job, tmp_path: Path) -> None:
    flags = [*MLP, "--compression", "sidco", "--ratio", "0.02"]
    whole = train(server, job, tmp_path / "whole.json", *flags, "--tensorboard", str(tmp_path / "board"))
    board.check(tmp_path / "board", whole)
    assert whole["compression"] == {"name": "sidco", "ratio": 0.02}
    assert whole["stats"]["steps"] == 16
    assert whole["steps"]["sent_bytes"][-1] < 4 * whole["model"]["parameters"] / 10
    assert sum(whole["steps"]["sent_bytes"]) == whole["epochs"][-1]["sent_bytes"] == whole["stats"]["sent_bytes"]

    saving = [*flags, "--checkpoint", str(tmp_path / "run.pt")]
    half = train(server, job, tmp_path / "half.json", *saving, "--stop-after", "1")
    assert not half["complete"]
    assert {path.name for path in tmp_path.glob("run.pt*")} == {
        "run.pt",
        "run.pt.epoch1.rank0",
        "run.pt.epoch1.rank1",
    }
    resumed = train(server, job, tmp_path / "resumed.json", *saving, "--resume")
    assert resumed["weights"] == whole["weights"] != half["weights"]
    assert resumed["curve"] == whole["curve"]
    assert resumed["complete"]
    assert len(resumed["epochs"]) == 2
    assert not list(tmp_path.glob("run.pt.epoch1.*"))

    (tmp_path / "run.pt.epoch2.rank1").unlink()
    done = programs.run(server, job, PROGRAM, *saving, "--resume")
    assert done.status == 2
    assert "run.pt.epoch2.rank1 cannot be resumed from" in done.said


def test_wrong_flags_and_data_are_said_once(server: Server, job: Job, tmp_path: Path) -> None:
    flags = launch("mpirun", 2, [str(PROGRAM), "--compression", "sidko"], timeout=120)
    assert flags.returncode == 2
    assert flags.stdout.count("did you mean 'sidco'") == 1
    assert "Traceback" not in flags.stdout
    data = programs.run(server, job, PROGRAM, "--data-dir", str(tmp_path))
    assert data.status == 2
    assert data.said.count("train_torch: error:") == 1
    assert "Traceback" not in data.said
