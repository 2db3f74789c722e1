"""Tensors on their way into an exchange, and past it."""

from __future__ import annotations

import math

import torch

from hvd_compress.kernels import Float32

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def flat(tensor: torch.Tensor) -> Float32:
    """Return the tensor as a flat float32 array: its own memory where it is contiguous float32."""
    tensor = tensor.detach()
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        tensor = tensor.to(torch.float32).contiguous()
    array: Float32 = tensor.numpy().reshape(-1)
    return array


def as_horovod_takes_it(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype | None]:
    """Return what Horovod gets of a tensor that is left to it, which cannot be bfloat16 under PyTorch, and the dtype to
    turn the result into, if it is not that."""
    return (tensor.float(), tensor.dtype) if tensor.dtype == torch.bfloat16 else (tensor, None)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all elements are finite."""
    if tensor.is_sparse:
        tensor = tensor._values()
    if not tensor.is_floating_point():
        return True
    # a sum in the tensor's own type is fast; that of finite numbers may overflow, and is then made in a larger one
    return math.isfinite(float(tensor.sum())) or math.isfinite(float(tensor.sum(dtype=torch.float64)))


def check(tensor: torch.Tensor) -> None:
    """Raise unless this is a tensor that can be compressed."""
    if tensor.layout != torch.strided:
        raise TypeError(
            f"tensors of layout {tensor.layout} cannot be compressed; use sparse_as_dense=True, without groups="
        )
    if tensor.dtype not in FLOATS:
        raise TypeError(f"tensors of {tensor.dtype} cannot be compressed; leave them to Horovod without compression")
    if tensor.device.type != "cpu":
        raise NotImplementedError(
            f"the tensor is on {tensor.device}: this version compresses gradients on the CPU only; train on the CPU, "
            "or without compression"
        )
