import json
from pathlib import Path
from typing import Any

import pytest

from tests.examples import board
from tests.ranks.launching import launch

pytestmark = pytest.mark.multiprocess
TINY = ["--data", "digits", "--train-limit", "512", "--lr", "0.1", "--epochs", "2", "--threads", "1"]
MLP = [*TINY, "--model", "mlp", "--width", "64"]


def train(record: Path, *arguments: str, launcher: str = "mpirun") -> dict[str, Any]:
    done = launch(launcher, 2, ["examples/train_torch.py", "--record", str(record), *arguments], timeout=120)
    assert done.returncode == 0, done.stdout
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def test_uncompressed(tmp_path: Path) -> None:
    record = train(tmp_path / "none.json", *TINY, launcher="horovodrun")
    assert record["complete"]
    assert record["compression"] == "none"
    assert record["stats"] is None
    assert record["ranks"] == 2
    assert record["steps"]["sent_bytes"] == [4 * record["model"]["parameters"]] * 16
    assert record["epochs"][-1]["test_accuracy"] > 0.3


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    flags = [*MLP, "--compression", "sidco", "--ratio", "0.02"]
    whole = train(tmp_path / "whole.json", *flags, "--tensorboard", str(tmp_path / "board"))
    board.check(tmp_path / "board", whole)
    assert whole["compression"] == {"name": "sidco", "ratio": 0.02}
    assert whole["stats"]["steps"] == 16
    assert whole["steps"]["sent_bytes"][-1] < 4 * whole["model"]["parameters"] / 10
    assert sum(whole["steps"]["sent_bytes"]) == whole["epochs"][-1]["sent_bytes"] == whole["stats"]["sent_bytes"]

    saving = [*flags, "--checkpoint", str(tmp_path / "run.pt")]
    half = train(tmp_path / "half.json", *saving, "--stop-after", "1")
    assert not half["complete"]
    assert {path.name for path in tmp_path.glob("run.pt*")} == {
        "run.pt",
        "run.pt.epoch1.rank0",
        "run.pt.epoch1.rank1",
    }
    resumed = train(tmp_path / "resumed.json", *saving, "--resume")
    assert resumed["weights"] == whole["weights"] != half["weights"]
    assert resumed["curve"] == whole["curve"]
    assert resumed["complete"]
    assert len(resumed["epochs"]) == 2
    assert not list(tmp_path.glob("run.pt.epoch1.*"))

    (tmp_path / "run.pt.epoch2.rank1").unlink()
    done = launch("mpirun", 2, ["examples/train_torch.py", *saving, "--resume"], timeout=120)
    assert done.returncode == 2
    assert "run.pt.epoch2.rank1 cannot be resumed from" in done.stdout


def test_wrong_flags_and_data_are_said_once(tmp_path: Path) -> None:
    flags = launch("mpirun", 2, ["examples/train_torch.py", "--compression", "sidko"], timeout=120)
    assert flags.returncode == 2
    assert flags.stdout.count("did you mean 'sidco'") == 1
    assert "Traceback" not in flags.stdout
    data = launch("mpirun", 2, ["examples/train_torch.py", "--data-dir", str(tmp_path)], timeout=120)
    assert data.returncode == 2
    assert data.stdout.count("train_torch: error:") == 1
    assert "Traceback" not in data.stdout
