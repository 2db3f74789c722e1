import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.examples import board
from tests.examples.conftest import ROOT
from tests.ranks import programs
from tests.ranks.launching import launch
from tests.ranks.scenario import Job
from tests.ranks.server import Server

pytest.importorskip("horovod.tensorflow")
pytestmark = [pytest.mark.multiprocess, pytest.mark.parametrize("job", [Job("tensorflow", "mpirun", 2)], ids=str)]
PROGRAM = ROOT / "examples" / "train_tensorflow.py"
FLAGS = ["--data", "digits", "--train-limit", "512", "--lr", "0.1", "--epochs", "2", "--threads", "1"]
FLAGS += ["--model", "mlp", "--width", "64", "--compression", "sidco", "--ratio", "0.02"]


def train(server: Server, job: Job, record: Path, *arguments: str) -> dict[str, Any]:
    done = programs.run(server, job, PROGRAM, "--record", str(record), *arguments)
    assert done.status == 0, done.said[-4000:]
    content: dict[str, Any] = json.loads(record.read_text())
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing interrupted, with model.fit, started as users start it."""
    folder = tmp_path_factory.mktemp("whole")
    record = folder / "whole.json"
    options = [*FLAGS, "--record", str(record), "--tensorboard", str(folder / "board")]
    done = launch("horovodrun", 2, [str(PROGRAM), *options], timeout=120)
    assert done.returncode == 0, done.stdout[-4000:]
    content: dict[str, Any] = json.loads(record.read_text())
    board.check(folder / "board", content)
    return content


def test_the_record_is_that_of_pytorch(job: Job, whole: dict[str, Any]) -> None:
    assert whole["complete"]
    assert whole["compression"] == {"name": "sidco", "ratio": 0.02}
    assert whole["stats"]["steps"] == len(whole["steps"]["sent_bytes"]) == 16
    assert sum(whole["steps"]["sent_bytes"]) == whole["epochs"][-1]["sent_bytes"] == whole["stats"]["sent_bytes"]
    assert whole["steps"]["sent_bytes"][-1] < 4 * whole["model"]["parameters"] / 10
    assert whole["curve"]["step"] == [8, 16]  # ends of epochs
    assert whole["epochs"][-1]["test_accuracy"] > 0.3


@pytest.fixture(scope="module")
def half(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job, str, Path], dict[str, Any]]:
    """Copy to a folder the checkpoint ``run`` of a run with that loop, stopped after an epoch; returns its record."""

    @cache
    def run(job: Job, loop: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("half")
        saving = ["--loop", loop, "--checkpoint", str(folder / "run"), "--stop-after", "1"]
        return folder, train(server, job, tmp_path_factory.mktemp("record") / "half.json", *FLAGS, *saving)

    def copy(job: Job, loop: str, to: Path) -> dict[str, Any]:
        folder, record = run(job, loop)
        shutil.copytree(folder, to, dirs_exist_ok=True)
        return record

    return copy


@pytest.mark.parametrize("loop", ["fit", "custom"])
def test_a_resumed_run_ends_with_the_same_weights(
    server: Server,
    job: Job,
    tmp_path: Path,
    whole: dict[str, Any],
    half: Callable[[Job, str, Path], dict[str, Any]],
    loop: str,
) -> None:
    """... bit for bit; and ``model.fit`` and a loop of one's own are the same training."""
    stopped = half(job, loop, tmp_path)
    assert not stopped["complete"]
    names = {"run", "run.epoch1.rank0", "run.epoch1.rank1"}
    assert {path.name for path in tmp_path.glob("run*")} == names
    saving = [*FLAGS, "--loop", loop, "--checkpoint", str(tmp_path / "run")]
    resumed = train(server, job, tmp_path / "resumed.json", *saving, "--resume")
    assert resumed["weights"] == whole["weights"] != stopped["weights"]
    assert resumed["curve"] == whole["curve"]
    assert resumed["steps"]["sent_bytes"] == whole["steps"]["sent_bytes"]
    assert resumed["complete"]
    assert len(resumed["epochs"]) == 2
    assert not list(tmp_path.glob("run.epoch1.*"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_a_checkpoint_that_is_not_whole_is_said_on_one_line(
    server: Server,
    job: Job,
    tmp_path: Path,
    half: Callable[[Job, str, Path], dict[str, Any]],
    damage: Callable[[Path], None],
) -> None:
    half(job, "fit", tmp_path)
    damage(tmp_path / "run.epoch1.rank1")
    done = programs.run(server, job, PROGRAM, *FLAGS, "--checkpoint", str(tmp_path / "run"), "--resume")
    assert done.status == 2
    assert done.said.count("run.epoch1.rank1 cannot be resumed from") == 1
    assert "Traceback" not in done.said
