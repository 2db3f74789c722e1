"""The kernels for gradients on a GPU, in Triton: the bytes of ``reference``, from tensors of PyTorch.

What has as many elements as the gradients (memories, pieces, sums, words) is a tensor on the device; what has as many
as are sent (indices, values) is a NumPy array on the host. The methods are otherwise those of the protocol.
``launch`` says how work on the device is ordered; ``programs`` is what runs there.

This needs PyTorch and Triton (the extra ``cuda``); it is imported where there are gradients on a device. Written for
CUDA, checked by Triton's interpreter, not yet run on a GPU.
"""

from __future__ import annotations

import torch

from hvd_compress.kernels.device.arrays import ArrayDevice
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.payloads import PayloadDevice
from hvd_compress.kernels.device.quantization import QuantizationDevice
from hvd_compress.kernels.device.sparsification import SparsificationDevice
from hvd_compress.kernels.device.spectra import SpectrumDevice
from hvd_compress.kernels.device.ternary import TernaryDevice
from hvd_compress.kernels.protocol import Kernels

TILE = 1024
"""Elements that one instance of a program works on."""


class DeviceKernels(
    ArrayDevice, SparsificationDevice, QuantizationDevice, TernaryDevice, PayloadDevice, SpectrumDevice
):
    """The kernels for the tensors of one device.

    Args:
        device: a CUDA device; the CPU under Triton's interpreter.
        host: the kernels for what is on the host.
        tile: elements that one instance of a program works on, a power of two from 16. No result depends on it.
    """

    name = "device"

    def __init__(self, device: torch.device, host: Kernels, tile: int = TILE) -> None:
        self._launcher = Launcher(device)
        self._host = host
        self._tile = tile

    @property
    def synchronizations(self) -> int:
        """How often the host has waited for the device."""
        return self._launcher.downloads
