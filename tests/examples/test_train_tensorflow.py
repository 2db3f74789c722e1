import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.examples import board
from tests.ranks.launching import launch

pytestmark = pytest.mark.multiprocess
FLAGS = ["--data", "digits", "--train-limit", "512", "--lr", "0.1", "--epochs", "2", "--threads", "1"]
FLAGS += ["--model", "mlp", "--width", "64", "--compression", "sidco", "--ratio", "0.02"]


def train(record: Path, *arguments: str) -> dict[str, Any]:
    pytest.importorskip("horovod.tensorflow")
    done = launch("horovodrun", 2, ["examples/train_tensorflow.py", "--record", str(record), *arguments], timeout=120)
    assert done.returncode == 0, done.stdout[-4000:]
    content: dict[str, Any] = json.loads(record.read_text())
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing interrupted, with model.fit."""
    folder = tmp_path_factory.mktemp("whole")
    record = train(folder / "whole.json", *FLAGS, "--tensorboard", str(folder / "board"))
    board.check(folder / "board", record)
    return record


def test_the_record_is_that_of_pytorch(whole: dict[str, Any]) -> None:
    assert whole["complete"]
    assert whole["compression"] == {"name": "sidco", "ratio": 0.02}
    assert whole["stats"]["steps"] == len(whole["steps"]["sent_bytes"]) == 16
    assert sum(whole["steps"]["sent_bytes"]) == whole["epochs"][-1]["sent_bytes"] == whole["stats"]["sent_bytes"]
    assert whole["steps"]["sent_bytes"][-1] < 4 * whole["model"]["parameters"] / 10
    assert whole["curve"]["step"] == [10]
    assert whole["epochs"][-1]["test_accuracy"] > 0.3


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], dict[str, Any]]:
    """Copy to a folder the checkpoint ``run`` of a run with that loop, stopped after an epoch; returns its record."""

    @cache
    def run(loop: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("half")
        saving = ["--loop", loop, "--checkpoint", str(folder / "run")]
        return folder, train(tmp_path_factory.mktemp("record") / "half.json", *FLAGS, *saving, "--stop-after", "1")

    def copy(loop: str, to: Path) -> dict[str, Any]:
        folder, record = run(loop)
        shutil.copytree(folder, to, dirs_exist_ok=True)
        return record

    return copy


@pytest.mark.parametrize("loop", ["fit", "custom"])
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, whole: dict[str, Any], half: Callable[[str, Path], dict[str, Any]], loop: str
) -> None:
    """... bit for bit; and ``model.fit`` and a loop of one's own are the same training."""
    stopped = half(loop, tmp_path)
    assert not stopped["complete"]
    names = {"run", "run.epoch1.rank0", "run.epoch1.rank1"}
    assert {path.name for path in tmp_path.glob("run*")} == names
    saving = [*FLAGS, "--loop", loop, "--checkpoint", str(tmp_path / "run")]
    resumed = train(tmp_path / "resumed.json", *saving, "--resume")
    assert resumed["weights"] == whole["weights"] != stopped["weights"]
    assert resumed["curve"] == whole["curve"]
    assert resumed["steps"]["sent_bytes"] == whole["steps"]["sent_bytes"]
    assert resumed["complete"]
    assert len(resumed["epochs"]) == 2
    assert not list(tmp_path.glob("run.epoch1.*"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_a_checkpoint_that_is_not_whole_is_said_on_one_line(
    tmp_path: Path, half: Callable[[str, Path], dict[str, Any]], damage: Callable[[Path], None]
) -> None:
    half("fit", tmp_path)
    damage(tmp_path / "run.epoch1.rank1")
    saving = [*FLAGS, "--checkpoint", str(tmp_path / "run")]
    done = launch("mpirun", 2, ["examples/train_tensorflow.py", *saving, "--resume"], timeout=120)
    assert done.returncode == 2
    assert done.stdout.count("run.epoch1.rank1 cannot be resumed from") == 1
    assert "Traceback" not in done.stdout
