"""Inputs for timing on a GPU: restored there, timed by its events, and evicted from its cache before every call."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from hvd_compress.advisor.exchange_timing import Inputs, Restorable
from hvd_compress.kernels import on_device

EVICTED = 256 * 2**20
"""Bytes that are written before a call is timed: several times what a GPU's L2 cache holds (an H200: 60 MB)."""


class DeviceInputs(Inputs):
    """``Inputs`` on a device of PyTorch.

    The CPU is one by Triton's interpreter, where times mean nothing: what is measured is the interpreter.

    Raises:
        ImportError: PyTorch or Triton is missing.
        ValueError: there is no such device.
    """

    def __init__(self, device: str, n: int) -> None:
        torch = _torch()
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        super().__init__(n, on_device(device))
        self._evicting: Any = torch.zeros(EVICTED // 4 if self._on_gpu else 1, device=self._device)

    def restore(self, timed: Restorable) -> None:
        """Bring the gradient and what ``timed`` changes back, and put something else into the cache."""
        super().restore(timed)
        self._evicting.add_(1)
        self.wait()

    def wait(self) -> None:
        if self._on_gpu:
            _torch().cuda.synchronize(self._device)

    def seconds(self, run: Callable[[], object]) -> float:
        if not self._on_gpu:
            return super().seconds(run)
        cuda = _torch().cuda
        began, ended = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000

    def waits(self) -> int:
        kernels: Any = self.kernels
        return int(kernels.on_device.synchronizations)


def inputs_on(device: str) -> Callable[[int], Inputs]:
    """Return what makes inputs of a size on a device; check that there is one.

    Raises:
        ImportError: PyTorch or Triton is missing.
        ValueError: there is no such device.
    """
    torch = _torch()
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device: {str(error).splitlines()[0]}") from error
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"--device must be cuda, or cuda:1 and so on, got {device!r}")
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("--device cpu is for tests, by Triton's interpreter (TRITON_INTERPRET=1); leave --device out")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch {torch.__version__} finds no CUDA device here")
    on_device(device)
    return functools.partial(DeviceInputs, device)


def describe(device: str) -> str:
    """Return the name of a device."""
    torch = _torch()
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return "Triton's interpreter on the CPU: no timing of a GPU"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"timing on a device needs PyTorch: pip install 'hvd-compress[cuda]' ({error})") from error
    return torch
