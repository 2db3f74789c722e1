"""The TensorFlow driver under real mpirun and horovodrun. One launch runs many scenarios; each is a test of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("scenario", scenarios("tf_lgc"))
def test_lgc(outcomes, scenario: str) -> None:
    check(outcomes("horovodrun", 2, "tf_lgc"), scenario)


@pytest.mark.parametrize("scenario", scenarios("tf_scripts"))
def test_scripts(outcomes, scenario: str) -> None:
    check(outcomes("horovodrun", 2, "tf_scripts"), scenario)


def test_pytorch_and_tensorflow_send_the_same_bytes(tmp_path: Path) -> None:
    """Gradients of training under PyTorch, replayed under TensorFlow: payloads and means, bit for bit."""
    pytest.importorskip("horovod.tensorflow")
    for framework in ("torch", "tensorflow"):
        done = launch("mpirun", 2, ["-m", f"tests.multiprocess.payloads_{framework}", str(tmp_path)], timeout=120)
        assert done.returncode == 0, done.stdout[-4000:]
    for rank in range(2):
        left, right = np.load(tmp_path / f"torch.{rank}.npz"), np.load(tmp_path / f"tensorflow.{rank}.npz")
        assert left.files, "nothing was recorded"
        assert sorted(left.files) == sorted(right.files)
        wrong = [key for key in left.files if left[key].tobytes() != right[key].tobytes()]
        assert not wrong
        kinds = {key.split("/")[1] for key in left.files}
        assert kinds == {"gradient", "sent", "mean"}


def test_keras_3(tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ["-m", "tests.multiprocess.tf_keras3", str(report)]
    done = launch("mpirun", 2, arguments, timeout=120, TF_USE_LEGACY_KERAS="0")
    assert report.exists(), done.stdout[-4000:]
