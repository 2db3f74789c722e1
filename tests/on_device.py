"""Simulations whose gradients are on a device: the CPU, by Triton's interpreter. Import this only where Triton is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hvd_compress import kernels
from hvd_compress.drivers import simulation
from hvd_compress.exchange import Collective, sent_array
from hvd_compress.kernels import host
from hvd_compress.kernels.device import DeviceKernels
from hvd_compress.kernels.device.placement import PlacedKernels

TAKE_PIECES = ("add", "add_momentum", "sample", "select", "norm", "quantize", "mask")
TILE = 16_384
"""The interpreter works on a whole tile at once, and takes about as long for a small one."""


class GradientsOnDevice(PlacedKernels):
    """Kernels that take the simulation's gradients, which are NumPy arrays, as tensors."""

    def __init__(self) -> None:
        super().__init__(DeviceKernels(torch.device("cpu"), host.KERNELS, TILE), host.KERNELS)

    def flat(self, piece: Any) -> Any:
        return self.on_device.flat(torch.from_numpy(np.array(piece)))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = super().__getattr__(name)
        if name not in TAKE_PIECES:
            return kernel

        def taking(*arguments: Any) -> Any:
            return kernel(*map(_pieces_as_tensors, arguments))

        setattr(self, name, taking)
        return taking


def _pieces_as_tensors(argument: Any) -> Any:
    if not isinstance(argument, (list, tuple)):
        return argument
    return [torch.from_numpy(np.array(piece)) if isinstance(piece, np.ndarray) else piece for piece in argument]


class DeviceTransport(simulation.SimulatedTransport):
    """Carries tensors as arrays, as a Horovod without NCCL does."""

    def start(self, collective: Collective, name: str) -> str:
        values: Any = sent_array(collective)
        tensors: set[str] = self.__dict__.setdefault("_tensors", set())
        if isinstance(values, torch.Tensor):
            collective = dataclasses.replace(collective, values=values.numpy().copy())  # type: ignore[call-arg]
        handle = super().start(collective, name)
        if isinstance(values, torch.Tensor):
            tensors.add(handle)
        return handle

    def result(self, handle: str) -> Any:
        result = super().result(handle)
        tensors: set[str] = self.__dict__.setdefault("_tensors", set())
        if handle not in tensors:
            return np.array(result)  # may be written to, as PyTorch wants it
        tensors.remove(handle)
        return torch.from_numpy(np.array(result))


def use_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the simulations that a test makes compress on a device."""
    device = GradientsOnDevice()
    monkeypatch.setattr(kernels, "get", lambda name=None: device)
    monkeypatch.setattr(simulation, "SimulatedTransport", DeviceTransport)
