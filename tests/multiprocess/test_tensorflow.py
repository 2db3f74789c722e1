"""The TensorFlow driver under real mpirun and horovodrun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("horovod.tensorflow")

from tests.ranks import tensorflow
from tests.ranks.launching import launch
from tests.ranks.scenario import Job, Scenario, each_scenario
from tests.ranks.server import Server

pytestmark = pytest.mark.multiprocess


@each_scenario(tensorflow)
def test_scenario(server: Server, job: Job, scenario: Scenario) -> None:
    server.run(job, scenario)


@pytest.mark.ends_ranks
@pytest.mark.parametrize("job", [Job("torch", "mpirun", 2)], ids=str)
def test_pytorch_sends_the_same_bytes(server: Server, job: Job, tmp_path: Path) -> None:
    """Gradients of training under PyTorch, replayed under TensorFlow: payloads and means, bit for bit."""
    pytest.importorskip("horovod.torch")
    from tests.ranks.tensorflow import payloads as replayed
    from tests.ranks.torch import payloads as recorded

    server.call(job, recorded.write_all, str(tmp_path))
    server.call(Job("tensorflow", "mpirun", 2), replayed.write_all, str(tmp_path))
    for rank in range(2):
        left, right = np.load(tmp_path / f"torch.{rank}.npz"), np.load(tmp_path / f"tensorflow.{rank}.npz")
        assert left.files, "nothing was recorded"
        assert sorted(left.files) == sorted(right.files)
        same = [key for key in left.files if not key.startswith("auto/sent")]  # (in those there are step times)
        wrong = [key for key in same if left[key].tobytes() != right[key].tobytes()]
        assert not wrong
        kinds = {key.split("/")[1] for key in left.files}
        assert kinds == {"gradient", "sent", "mean"}


def test_keras_3(tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ["-m", "tests.ranks.tensorflow.keras3", str(report)]
    done = launch("mpirun", 2, arguments, timeout=120, TF_USE_LEGACY_KERAS="0")
    assert report.exists(), done.stdout[-4000:]
