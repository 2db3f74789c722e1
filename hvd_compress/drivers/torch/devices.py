"""Which devices gradients may be on, and what compresses them there."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from hvd_compress import registry
from hvd_compress.compressor import Compressor
from hvd_compress.kernels import Kernels, on_device
from hvd_compress.kernels import get as get_kernels

DEVICE = "device"
"""What ``HVD_COMPRESS_KERNELS`` is for the kernels of devices on the CPU."""
LEAST_CAPABILITY = (7, 0)
"""Volta: older cards are beyond Triton."""
LEAST_TRITON = (3, 6)
"""As the extra ``cuda`` asks for."""


def place(tensor: torch.Tensor) -> str:
    """Return where a gradient is compressed, as ``Parameter.place`` has it: on a device, or on the host.

    ``HVD_COMPRESS_KERNELS=device`` makes the CPU a device, for Triton's interpreter.
    """
    on_host = tensor.device.type == "cpu" and os.environ.get("HVD_COMPRESS_KERNELS") != DEVICE
    return "" if on_host else str(tensor.device)


def kernels_at(where: str) -> Kernels:
    """Return the kernels for gradients at a ``place``."""
    if where:
        return on_device(where)
    return get_kernels("host") if os.environ.get("HVD_COMPRESS_KERNELS") == DEVICE else get_kernels()


def device_of(tensors: Iterable[torch.Tensor]) -> torch.device | None:
    """Return the device that some of these tensors are on; None if all are on the host.

    Raises:
        ValueError: they are on several.
    """
    devices = {where: tensor.device for tensor in tensors if (where := place(tensor))}
    if len(devices) > 1:
        raise ValueError(
            f"the parameters are on several devices, {', '.join(sorted(devices))}: Horovod has one process for each "
            "GPU; start as many ranks as there are GPUs, and call torch.cuda.set_device(hvd.local_rank()) in each"
        )
    return next(iter(devices.values()), None)


def check(device: torch.device, compressor: Compressor) -> None:
    """Raise unless gradients on this device can be compressed there.

    Raises:
        ImportError: Triton is missing.
        NotImplementedError: not on devices of this kind, or not by this compressor.
        RuntimeError: the card or Triton is too old.
    """
    elsewhere = "move the model to the CPU (model.cpu()), or train without compression"
    if device.type == "cuda" and torch.version.hip is not None:
        raise NotImplementedError(
            f"the gradients are on an AMD GPU (ROCm {torch.version.hip}), which is not supported: CUDA is; {elsewhere}"
        )
    if device.type not in ("cpu", "cuda"):
        raise NotImplementedError(f"the gradients are on {device}: supported are the CPU and CUDA devices; {elsewhere}")
    if not compressor.runs_on_devices:
        served = sorted(name for name in registry.BUILT_IN if _serves(name))
        raise NotImplementedError(
            f"{type(compressor).__name__} does not compress on {device} yet; these do: {', '.join(served)}; or "
            f"{elsewhere}"
        )
    _check_triton()
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        raise RuntimeError(
            f"{torch.cuda.get_device_name(device)} has compute capability {'.'.join(map(str, capability))}, and the "
            f"kernels need {'.'.join(map(str, LEAST_CAPABILITY))} (Volta) or newer; {elsewhere}"
        )


def _serves(name: str) -> bool:
    return registry.get(name).runs_on_devices is True


def _check_triton() -> None:
    try:
        import triton
    except ImportError as error:
        raise ImportError(
            f"gradients on a GPU need Triton, which cannot be imported ({error}): pip install 'hvd-compress[cuda]'"
        ) from error
    version = tuple(int(number) for number in triton.__version__.split(".")[:2])
    if version < LEAST_TRITON:
        raise RuntimeError(
            f"gradients on a GPU need Triton {'.'.join(map(str, LEAST_TRITON))} or newer, this is "
            f"{triton.__version__}: pip install --upgrade triton"
        )
