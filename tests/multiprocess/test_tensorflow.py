"""The TensorFlow driver under real mpirun and horovodrun. One launch runs many scenarios; each is a test of its own."""

from __future__ import annotations

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
    check(outcomes("mpirun", 2, "tf_exchanges"), scenario)


def test_keras_3(tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ["-m", "tests.multiprocess.tf_keras3", str(report)]
    done = launch("mpirun", 2, arguments, timeout=120, TF_USE_LEGACY_KERAS="0")
    assert report.exists(), done.stdout[-4000:]
