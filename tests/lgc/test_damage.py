"""What a root or the leader broadcasts, and comes as something else: all workers refuse it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvd_compress import LGC, CorruptPayload, Simulation
from tests.gradients import gradient
from tests.simulation import change_broadcasts


def train(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None], steps: int = 12) -> None:
    """Train with broadcasts of exchanges that are changed on all workers, their root included."""
    change_broadcasts(monkeypatch, ".round", change)
    arguments = {"dense_steps": 0, "train_steps": 2, "encoder": (4, 4, 2), "decoder": (4, 4), "trainer": "inline"}
    sim = Simulation(LGC(0.1, min_numel=1, floor=False, dense=[], topk_only=[], **arguments), 2)
    for step in range(steps):
        sim.step({"w": [gradient("laplace", 4000, step, rank).reshape(40, 100) for rank in range(2)]})


@pytest.mark.parametrize("scale", [0.0, -1.0, 3.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_power_of_two(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(sent: np.ndarray) -> None:
        sent[4:8] = np.frombuffer(struct.pack("<f", scale), np.uint8)

    with pytest.raises(CorruptPayload, match=r"come with a scale of .*, expected a power of two"):
        train(monkeypatch, change)


def test_weights_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(sent: np.ndarray) -> None:
        if b"safetensors" in sent.tobytes() or b"__metadata__" in sent.tobytes():
            sent[:] = 255

    with pytest.raises(CorruptPayload, match="what the leader sent"):
        train(monkeypatch, change)


@pytest.mark.parametrize("variant", ["allreduce", "gather"])
@pytest.mark.parametrize("where", [np.s_[5:7], np.s_[:]])
def test_without_a_memory_a_gradient_that_is_not_finite_is_no_damage(variant: str, where: Any) -> None:
    """The step is skipped on all workers, whoever's gradient it is, root or not."""
    weights = str(Path(__file__).parents[1] / "contract" / f"lgc-{variant}.safetensors")
    architecture = {"encoder": (4, 4, 2), "decoder": (4, 4), "weights": weights, "dense_steps": 0}
    compressor = LGC(0.3, variant, min_numel=1, dense=[], topk_only=[], error_feedback=False, **architecture)
    sim = Simulation(compressor, 2)
    for step in range(16):
        given = [gradient("laplace", 4000, step, rank) for rank in range(2)]
        if step >= 12:
            given[step // 2 % 2][where] = np.nan
        sim.step({"w": [array.reshape(40, 100) for array in given]})
    for one in sim.compressors:
        assert one.stats()["lgc"]["phase"] == "learned"
        assert one.stats()["total"]["skipped_steps"] == 4
