"""Tensors on their way into an exchange, and past it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import horovod.torch as hvd
import numpy as np
import torch

from hvd_compress.drivers.torch import devices
from hvd_compress.kernels import Float32

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Original(NamedTuple):
    """What a tensor was that Horovod gets in another form."""

    dtype: torch.dtype
    device: torch.device

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in its original form."""
        return tensor.to(self.device, self.dtype)


def flat(tensor: torch.Tensor) -> Float32:
    """Return the tensor as a flat float32 array on the host: its own memory where it is there, contiguous and
    float32."""
    tensor = tensor.detach()
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        tensor = tensor.to(torch.float32).contiguous()
    array: Float32 = tensor.cpu().numpy().reshape(-1)
    return array


def piece(tensor: torch.Tensor) -> Float32:
    """Return a gradient as the kernels of its device take it, a tensor: itself, unless it is float64, or neither
    contiguous nor with its channels last. It is flat where that takes no copy."""
    tensor = tensor.detach()
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    if not tensor.is_contiguous():
        if tensor.dim() >= 3 and tensor.movedim(1, -1).is_contiguous():
            return cast(Float32, tensor)
        tensor = tensor.contiguous()
    return cast(Float32, tensor.view(-1))


def array_of(tensor: torch.Tensor) -> Float32:
    """Return the tensor as a flat float32 array in the order of its indices: on the host as ``flat`` does, on a device
    a tensor there."""
    if not devices.place(tensor):
        return flat(tensor)
    return cast(Float32, tensor.detach().to(torch.float32).reshape(-1))


def of_array(array: Any, device: torch.device) -> torch.Tensor:
    """Return an array of a kernel set as a tensor on this device."""
    return (torch.from_numpy(array) if isinstance(array, np.ndarray) else array).to(device)


def as_horovod_takes_it(tensor: torch.Tensor) -> tuple[torch.Tensor, Original | None]:
    """Return what Horovod gets of a tensor that is left to it, and what that was if it is not the tensor itself.

    Under PyTorch it takes no bfloat16. Built without CUDA it copies a tensor from the GPU without waiting for the copy,
    which is therefore made here; the host waits for it.
    """
    copied = not tensor.is_cpu and not hvd.cuda_built()
    if not copied and tensor.dtype != torch.bfloat16:
        return tensor, None
    taken = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return taken.cpu() if copied else taken, Original(tensor.dtype, tensor.device)


def with_mark(tensor: torch.Tensor, mark: bool) -> torch.Tensor:
    """Return a dense tensor, flat, and behind it an element that tells the ranks whether one of them has a ``mark``."""
    return torch.cat([tensor.detach().reshape(-1), tensor.new_full((1,), float(mark))])


def without_mark(reduced: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, bool]:
    """Return what the ranks' tensors ``with_mark`` were reduced to, in this shape, and whether some rank had one."""
    return reduced[:-1].view(shape), bool(reduced[-1])


def token_device(tensor: torch.Tensor, *, grouped: bool) -> torch.device:
    """Return where a tensor's token is to be: on the host, but in a group where Horovod gets the tensors that are not
    compressed, for those of a group must be on one device."""
    return tensor.device if grouped and hvd.cuda_built() else torch.device("cpu")


def beyond_float32(tensor: torch.Tensor) -> bool:
    """Return whether finite elements, of float64, are infinite in float32."""
    if tensor.dtype != torch.float64:
        return False
    values = tensor._values() if tensor.is_sparse else tensor
    return bool((values.to(torch.float32).isinf() & values.isfinite()).any())


def check(tensor: torch.Tensor) -> None:
    """Raise unless this is a tensor that can be compressed, wherever it is."""
    if tensor.layout != torch.strided:
        raise TypeError(
            f"tensors of layout {tensor.layout} cannot be compressed; use sparse_as_dense=True, without groups="
        )
    if tensor.dtype not in FLOATS:
        raise TypeError(f"tensors of {tensor.dtype} cannot be compressed; leave them to Horovod without compression")
