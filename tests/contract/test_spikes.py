"""One step with enormous but finite gradients: sent or skipped everywhere alike, and training goes on after it."""

from typing import Any

import numpy as np

from tests.contract.configurations import memory, product, simulation
from tests.gradients import gradient

SIZE, WORKERS = 3000, 2
SPIKE = np.float32(2e38)
"""The sum of two overflows."""

SPIKES = {
    "everywhere": np.s_[:, :],
    "one element": np.s_[:, SIZE // 3],
    "two elements": np.s_[:, [7, SIZE // 2]],
    "one worker": np.s_[1, :],
    "one element of one worker": np.s_[0, SIZE - 1],
}


@product("where", SPIKES)
def test_training_goes_on(configuration: dict[str, Any], where: str) -> None:
    sim = simulation(configuration, WORKERS)
    for step in range(22):
        given = np.array([gradient("laplace", SIZE, step, rank) for rank in range(WORKERS)])
        if step == 1:
            given[SPIKES[where]] = SPIKE
        mean = sim.step({"w": list(given)})["w"]
        if step != 1:
            assert np.isfinite(mean).all()
            for compressor in sim.compressors:
                assert all(np.isfinite(array).all() for array in memory(compressor, "w").values())
    if configuration.get("estimator") != "paper":  # whose fit may exceed all elements, step after step
        assert mean.any()  # (not in every step: an autoencoder of three training steps may give nothing for a while)
    skipped = {compressor.stats()["total"]["skipped_steps"] for compressor in sim.compressors}
    assert skipped <= {0, 1}
    assert len(skipped) == 1
