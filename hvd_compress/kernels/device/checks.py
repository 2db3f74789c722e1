"""Checks of the arguments of device kernels: everything that is wrong is said before anything is written."""

from __future__ import annotations

import torch

from hvd_compress.kernels.device.launch import Array


def require_tensor(
    name: str, tensor: torch.Tensor | Array, dtype: torch.dtype, device: torch.device, n: int | None
) -> torch.Tensor:
    """Return the tensor. Raise TypeError or ValueError unless it is a contiguous, one-dimensional one of ``n`` elements
    (None: any number) on the device."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype:
        raise TypeError(f"{name} must be a tensor of {dtype}, not {getattr(tensor, 'dtype', type(tensor).__name__)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not on {tensor.device}")
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(f"{name} must have one dimension and be contiguous, not shape {tuple(tensor.shape)}")
    if n is not None and len(tensor) != n:
        raise ValueError(f"{name} has {len(tensor)} elements, not {n}")
    return tensor


def require_below(indices: Array, limit: int, of: str) -> None:
    """Raise ValueError unless all ``indices`` are below ``limit``, the number of elements of an argument."""
    if int(indices.max(initial=0)) >= max(limit, 1):
        raise ValueError(f"indices must be below len({of}) = {limit}")
