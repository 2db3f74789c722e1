"""The TensorFlow driver under real mpirun and horovodrun. One launch runs many scenarios; each is a test of its own."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from tests.multiprocess.launching import launch, run_scenarios
from tests.multiprocess.test_torch import check, scenarios

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("horovod.tensorflow")
    folder: Path = tmp_path_factory.mktemp("multiprocess-tensorflow")
    return cache(lambda launcher, ranks, module: run_scenarios(launcher, ranks, module, folder))


@pytest.mark.parametrize("scenario", scenarios("tf_basics"))
@pytest.mark.parametrize(("launcher", "ranks"), [("mpirun", 4), ("horovodrun", 2), ("alone", 1)])
def test_basics(outcomes, launcher: str, ranks: int, scenario: str) -> None:
    check(outcomes(launcher, ranks, "tf_basics"), scenario)


@pytest.mark.parametrize("scenario", scenarios("tf_optimizers"))
def test_optimizers(outcomes, scenario: str) -> None:
    check(outcomes("mpirun", 2, "tf_optimizers"), scenario)


@pytest.mark.parametrize("scenario", scenarios("tf_exchanges"))
def test_exchanges(outcomes, scenario: str) -> None:
    check(outcomes("mpirun", 3, "tf_exchanges"), scenario)  # not a power of two


def test_keras_3(tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ["-m", "tests.multiprocess.tf_keras3", str(report)]
    done = launch("mpirun", 2, arguments, timeout=120, TF_USE_LEGACY_KERAS="0")
    assert report.exists(), done.stdout[-4000:]


def test_example(tmp_path: Path) -> None:
    """``model.fit`` and a loop of one's own are the same training, bit for bit."""
    flags = ["--data", "digits", "--train-limit", "512", "--lr", "0.1", "--epochs", "1", "--threads", "1"]
    flags += ["--model", "mlp", "--width", "64", "--compression", "sidco", "--ratio", "0.02"]
    records = []
    for loop in ("fit", "custom"):
        path = tmp_path / f"{loop}.json"
        arguments = ["examples/train_tensorflow.py", "--loop", loop, *flags, "--record", str(path)]
        done = launch("mpirun", 2, arguments, timeout=120)
        assert done.returncode == 0, done.stdout[-4000:]
        records.append(json.loads(path.read_text()))
    fit, custom = records
    assert fit["weights"] == custom["weights"]
    assert fit["complete"]
    assert fit["stats"]["steps"] == 8
    assert sum(fit["steps"]["sent_bytes"]) == fit["stats"]["sent_bytes"] < fit["stats"]["dense_bytes"] / 10
    assert fit["epochs"][0]["test_accuracy"] > 0.3
