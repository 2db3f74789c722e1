"""The configurations that come with the repository."""

from pathlib import Path

import numpy as np
import pytest

from hvd_compress import from_config, registry
from tests.simulation import Simulation

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_loads_and_runs(file: Path) -> None:
    compressor = from_config(file)
    assert from_config(compressor.to_config()).to_config() == compressor.to_config()
    sim = Simulation(compressor, 2)
    for _ in range(2):
        mean = sim.step({"w": [np.linspace(-1, 1, 5000), np.linspace(2, -1, 5000)]})["w"]
        assert np.isfinite(mean).all()


def test_every_built_in_compressor_has_one() -> None:
    if not FOLDER.is_dir():
        pytest.skip("configs/ is not part of this copy")
    assert {from_config(file).name for file in FILES} >= set(registry.BUILT_IN)
