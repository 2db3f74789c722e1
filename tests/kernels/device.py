"""Device kernels for tests: on the CPU by Triton's interpreter, or on a GPU with TRITON_INTERPRET=0; skipped without
Triton."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the device kernels need PyTorch")
pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")

from hvd_compress.kernels import host  # noqa: E402
from hvd_compress.kernels.device import DeviceKernels  # noqa: E402

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda:0")
KERNELS = DeviceKernels(DEVICE, host.KERNELS, tile=64)
"""Small tiles, so that small buckets have many."""

STORED_AS = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}


def tensor(array):
    """A copy of an array on the device; unsigned integers as signed ones of the same bits."""
    array = np.array(array)
    return torch.from_numpy(array.view(STORED_AS.get(array.dtype, array.dtype))).to(DEVICE)


def on_device(bucket):
    """The memory and the pieces of a bucket as tensors."""
    memory = None if bucket.memory is None else tensor(bucket.memory)
    return memory, [tensor(piece) for piece in bucket.pieces]


def array(x):
    """A tensor as an array, not shared with it."""
    return x.cpu().numpy().copy()
