"""Gradients on a device, by Triton's interpreter: all that a host's run does, to the last bit, whatever happens.

So what the other tests find of a compressor holds there, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the device kernels need PyTorch")
pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")

from tests.contract.configurations import CONFIGURATIONS, label, make
from tests.on_device import use_device
from tests.recording import Recorder
from tests.simulation import Simulation

SERVED = [c for c in CONFIGURATIONS if make(c).runs_on_devices is True]
SHORT = ({"name": "sidco", "ratio": 0.05, "fit": "exponential", "stages": "auto"}, {"name": "dgc", "ratio": 0.05})
SHAPES = {"w": (20, 30), "v": (300,), "b": (7,)}
"""Of which the last is below ``min_numel``."""


def run(configuration: dict[str, Any], recorder: Recorder) -> list[Any]:
    """What goes over the network, means and states in steps that count, that do not, and one that sends everything."""
    recorder.clear()
    workers = 4 if configuration["name"] == "two-level" else 2
    simulation = Simulation(make(configuration, min_numel=100, bucket_mb=0.01), workers)
    seen: list[Any] = []
    for step, happens in enumerate(["", "nan in w", "discard", "", "nan in b", "flush", ""]):
        if simulation.compressors[1].error_feedback and happens in ("discard", "flush"):
            getattr(simulation.compressors[1], happens)()
        gradients: dict[str, list[np.ndarray]] = {}
        for number, (name, shape) in enumerate(SHAPES.items()):
            draw = np.random.default_rng((step, number))
            gradients[name] = [draw.standard_t(2, shape).astype(np.float32) for _ in range(workers)]
        if happens.startswith("nan"):
            gradients[happens[-1]][0].flat[5] = np.nan
        means = simulation.step(gradients)
        seen += [(happens, name, mean.tobytes()) for name, mean in means.items()]
        for rank, compressor in enumerate(simulation.compressors):
            state = compressor.state_dict()
            held = {
                f"{n} {k}": np.array(x).tobytes() for n, arrays in state["memory"].items() for k, x in arrays.items()
            }
            seen.append((happens, rank, held, state["algorithm"]))
    return [*seen, *((post.form, np.asarray(post.array).tobytes()) for post in recorder.posts)]


@pytest.mark.parametrize(
    "configuration",
    [pytest.param(c, id=label(c), marks=() if c in SHORT else pytest.mark.long) for c in SERVED],
)
def test_as_on_the_host(configuration: dict[str, Any], recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(configuration, recorder)
    use_device(monkeypatch)
    found = run(configuration, recorder)
    if make(configuration).rounds_by_device:  # the simulation has compared the workers' means
        assert len(found) == len(expected)
        return
    for left, right in zip(found, expected, strict=True):
        assert left == right
