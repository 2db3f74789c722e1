"""No memory left on the device, wherever a step asks for some: the bucket is named, and nothing is lost of what is held
back. A step that could only fail when memories have been committed is refused before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the device kernels need PyTorch")
pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")

from hvd_compress import DGC, FFT, Half, QSGDMaxNorm, SIDCo, TernGrad  # noqa: E402
from hvd_compress.kernels.device.arrays import ArrayDevice  # noqa: E402
from hvd_compress.kernels.device.launch import Launcher  # noqa: E402
from tests.on_device import use_device  # noqa: E402
from tests.simulation import Simulation  # noqa: E402

SHAPES = {"w": (20, 15), "v": (200,)}
NAMED = r"no memory for the bucket '\w+' of \d+ elements \(0\.0 MiB for each of its arrays\): CUDA out of memory"


class Allocator:
    """Fails at one allocation; what has been reserved is there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = -1
        """Allocations until one fails; below zero: none does."""
        self.count = 0
        self._reserved = 0
        empty, upload, reserve = Launcher.empty, Launcher.upload, ArrayDevice.reserve

        def new(launcher: Any, n: int, dtype: Any) -> Any:
            self.take(n * dtype.itemsize)
            return empty(launcher, n, dtype)

        def uploaded(launcher: Any, array: np.ndarray) -> Any:
            self.take(array.nbytes)
            return upload(launcher, array)

        def reserved(device: Any, nbytes: int) -> None:
            reserve(device, nbytes)
            self._reserved = max(self._reserved, nbytes + 4096)

        patch.setattr(Launcher, "empty", new)
        patch.setattr(Launcher, "zeros", lambda launcher, n, dtype: new(launcher, n, dtype).zero_())
        patch.setattr(Launcher, "full", lambda launcher, n, value, dtype: new(launcher, n, dtype).fill_(value))
        patch.setattr(Launcher, "upload", uploaded)
        patch.setattr(ArrayDevice, "reserve", reserved)

    def take(self, nbytes: int) -> None:
        if nbytes <= self._reserved:
            self._reserved -= nbytes
            return
        self.count += 1
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.left -= 1

    def during(self, step: Callable[[], Any], fails_at: int = -1) -> int:
        """Run a step of which the allocation of this number fails; return how many it had."""
        self.left, self.count, self._reserved = fails_at, 0, 0
        try:
            step()
        finally:
            self.left, self._reserved = -1, 0
        return self.count


def gradients(step: int) -> dict[str, list[np.ndarray]]:
    draw = np.random.default_rng(step)
    return {name: [draw.standard_t(2, shape).astype(np.float32)] for name, shape in SHAPES.items()}


def held(compressor: Any) -> dict[str, Any]:
    state = compressor.state_dict()["memory"]
    return {f"{name} {key}": np.array(x).tobytes() for name, arrays in state.items() for key, x in arrays.items()}


def trained(compressor: Any, steps: int) -> Simulation:
    simulation = Simulation(compressor, 1)
    for step in range(steps):
        simulation.step(gradients(step))
    return simulation


@pytest.mark.parametrize(
    ("compressor", "flush"),
    [
        (SIDCo(0.1, min_numel=1), False),
        pytest.param(SIDCo(0.1, min_numel=1), True, marks=pytest.mark.long),
        pytest.param(DGC(0.1, min_numel=1), True, marks=pytest.mark.long),
        pytest.param(QSGDMaxNorm(4, min_numel=1), False, marks=pytest.mark.long),
        pytest.param(FFT(0.2, min_numel=1), False, marks=pytest.mark.long),
        pytest.param(TernGrad(min_numel=1), False, marks=pytest.mark.long),
        pytest.param(Half(min_numel=1, aggregate="reduce-scatter"), False, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_nothing_is_lost(compressor: Any, flush: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_device(monkeypatch)
    allocator = Allocator(monkeypatch)

    def steady() -> tuple[Simulation, Callable[[], Any]]:
        simulation = trained(compressor, 2)
        if flush:
            simulation.compressors[0].flush()
        return simulation, lambda: simulation.step(gradients(2))

    _, step = steady()
    for number in range(allocator.during(step)):
        simulation, step = steady()
        before = held(simulation.compressors[0])
        with pytest.raises(MemoryError, match=NAMED) as caught:
            allocator.during(step, number)
        assert "What is held back is as it was" in str(caught.value)
        assert held(simulation.compressors[0]) == before, number


def test_buckets_that_find_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step, or when parameters are fused behind it: then what it has held back is kept."""
    use_device(monkeypatch)
    allocator = Allocator(monkeypatch)
    sizes = {"w": 300, "v": 200}
    said: set[str] = set()
    for number in range(allocator.during(lambda: trained(SIDCo(0.1, min_numel=1), 1))):
        simulation = Simulation(SIDCo(0.1, min_numel=1), 1)
        with pytest.raises(MemoryError, match=NAMED) as caught:
            allocator.during(lambda s=simulation: s.step(gradients(0)), number)
        (name, size) = re.search(r"bucket '(\w+)' of (\d+)", str(caught.value)).groups()  # type: ignore[union-attr]
        assert int(size) == sizes.get(name, 500)
        said.add(name)
        with pytest.raises(RuntimeError) as later:
            simulation.step(gradients(1))
        decoded = name == "bucket0"
        assert ("what it sent is lost" in str(later.value)) == decoded
        kept = simulation.compressors[0].state_dict()["memory"]
        assert any(np.any(np.array(arrays["residual"])) for arrays in kept.values()) == decoded
    assert said == {"w", "v", "bucket0"}
