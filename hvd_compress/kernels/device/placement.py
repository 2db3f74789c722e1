"""Kernels that run where their arguments are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from hvd_compress.kernels.device import DeviceKernels
from hvd_compress.kernels.device_memory import memory_errors
from hvd_compress.kernels.protocol import Float32, Kernels


class PlacedKernels:
    """The kernels of a bucket whose gradients are on a device: with a tensor among its arguments a kernel runs there,
    without one on the host.

    What an algorithm does with k elements (sorting out what found no room, range floats of the values that it sends) is
    so the host's business, as if all were there.
    """

    name = "device"
    pooled = True

    def __init__(self, device: DeviceKernels, host: Kernels) -> None:
        self.on_device = device
        self._host = host
        self.identity = device.identity

    def empty(self, n: int) -> torch.Tensor:
        """See ``ArrayOperations.empty``. Raise MemoryError if the device has none left, as the kernels do."""
        with memory_errors():
            return self.on_device.empty(n)

    def reserve(self, nbytes: int) -> None:
        """See ``ArrayOperations.reserve``."""
        with memory_errors():
            self.on_device.reserve(nbytes)

    def empty_on_host(self, n: int) -> Float32:
        """See ``ArrayOperations.empty_on_host``: in pinned memory, if there is a GPU."""
        return self.on_device.empty_on_host(n)

    def from_host(self, x: Any) -> Any:
        """See ``ArrayOperations.from_host``."""
        return self.on_device.from_host(x)

    def is_vector(self, x: Any, n: int) -> bool:
        """See ``ArrayOperations.is_vector``."""
        return self.on_device.is_vector(x, n)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the kernel of that name."""
        here: Callable[..., Any] = getattr(self._host, name)
        there: Callable[..., Any] | None = getattr(self.on_device, name, None)

        def kernel(*arguments: Any) -> Any:
            if not any(map(_has_tensor, arguments)):
                return here(*arguments)
            if there is None:
                raise NotImplementedError(f"there is no kernel {name} for tensors on a device")
            with memory_errors():
                return there(*arguments)

        setattr(self, name, kernel)  # the next time it is found without this
        return kernel


def placed(device: str, host: Kernels) -> Kernels:
    """Return the kernels for buckets whose gradients are on this device; ``host`` for what is on the host."""
    return cast(Kernels, PlacedKernels(DeviceKernels(torch.device(device), host), host))


def _has_tensor(argument: Any) -> bool:
    if isinstance(argument, (list, tuple)):
        return any(isinstance(piece, torch.Tensor) for piece in argument)
    return isinstance(argument, torch.Tensor)
