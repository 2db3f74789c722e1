"""Whole tensors: ``ArrayOperations`` on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike

from hvd_compress.kernels.device import sums
from hvd_compress.kernels.device.launch import STORED_AS, Array, Launcher
from hvd_compress.kernels.device.parts import parts_of
from hvd_compress.kernels.protocol import Float32

SMALL = 4096
"""Bytes of the few numbers that a kernel works with besides: counters, scales, ends of sections."""


def torch_type(dtype: DTypeLike) -> torch.dtype:
    """Return the type of tensors that hold what NumPy has as ``dtype``; unsigned integers are in signed ones."""
    numpy_type: np.dtype[Any] = np.dtype(dtype)
    return torch.from_numpy(np.empty(0, STORED_AS.get(numpy_type, numpy_type))).dtype


class ArrayDevice:
    """What is done with whole tensors. The allocator of PyTorch pools them."""

    pooled = True
    _launcher: Launcher
    _tile: int

    @property
    def identity(self) -> str:
        """See ``ArrayOperations.identity``: the device's name, and the versions of what transforms there."""
        device = self._launcher.device
        if device.type != "cuda":
            return f"PyTorch {torch.__version__} on the CPU"
        return f"PyTorch {torch.__version__} with CUDA {torch.version.cuda} on {torch.cuda.get_device_name(device)}"

    def empty(self, n: int) -> torch.Tensor:
        """See ``ArrayOperations.empty``."""
        return self._launcher.empty(n, torch.float32)

    def empty_on_host(self, n: int) -> Float32:
        """See ``ArrayOperations.empty_on_host``: in pinned memory."""
        return self._launcher.empty_on_host(n, np.float32)

    def reserve(self, nbytes: int) -> None:
        """See ``ArrayOperations.reserve``: PyTorch keeps what is freed, for the stream that is current; large and small
        tensors apart."""
        for n in (nbytes, SMALL):
            self._launcher.empty(n, torch.uint8)

    def view(self, x: torch.Tensor, dtype: DTypeLike) -> torch.Tensor:
        """See ``ArrayOperations.view``."""
        return x.view(torch_type(dtype))

    def copy(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ArrayOperations.copy``."""
        return x.clone()

    def joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """See ``ArrayOperations.joined``."""
        return torch.cat(list(parts))

    def scaled(self, x: torch.Tensor, factor: float, out: torch.Tensor | None = None) -> torch.Tensor:
        """See ``ArrayOperations.scaled``; ``x`` may be of 16 bits."""
        return torch.mul(x.to(torch.float32), float(np.float32(factor)), out=out)

    def on_host(self, x: torch.Tensor) -> Array:
        """See ``ArrayOperations.on_host``. The host waits once."""
        return self._launcher.download(x)[0]

    def from_host(self, x: Array) -> torch.Tensor:
        """See ``ArrayOperations.from_host``. The host does not wait."""
        return self._launcher.upload(x)

    def beside(self, x: torch.Tensor | Array, y: torch.Tensor | Array) -> torch.Tensor | Array:
        """See ``ArrayOperations.beside``. The host waits once for what comes to it."""
        if isinstance(x, np.ndarray):
            return y if isinstance(y, np.ndarray) else self.on_host(y)
        return self.from_host(y) if isinstance(y, np.ndarray) else y

    def if_finite(self, x: torch.Tensor, otherwise: torch.Tensor | None) -> torch.Tensor:
        """See ``ArrayOperations.if_finite``. The host does not wait."""
        largest = torch.linalg.vector_norm(x, math.inf)  # NaN, if there is one
        return torch.where(largest < math.inf, x, 0.0 if otherwise is None else otherwise)

    def flat(self, piece: torch.Tensor) -> torch.Tensor:
        """See ``ArrayOperations.flat``."""
        return piece.to(torch.float32).reshape(-1)

    def put(self, x: torch.Tensor, numbers: Float32 | float) -> None:
        """See ``ArrayOperations.put``. The host does not wait."""
        x[...] = self._launcher.upload(numbers) if isinstance(numbers, np.ndarray) else numbers

    def is_vector(self, x: Any, n: int) -> bool:
        """See ``ArrayOperations.is_vector``."""
        right = isinstance(x, torch.Tensor) and x.shape == (n,) and x.dtype == torch.float32
        return right and x.device == self._launcher.device

    def overlap(self, x: torch.Tensor | Array, y: torch.Tensor | Array) -> bool:
        """See ``ArrayOperations.overlap``; whether they are in the same storage, which one of them on the host is
        not."""
        if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
            return False
        return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()

    def all_finite(self, x: torch.Tensor) -> bool:
        """See ``ArrayOperations.all_finite``. The host waits once."""
        return sums.largest(self._launcher, parts_of([x], self._launcher.device), self._tile) < math.inf

    def clear_not_finite(self, x: torch.Tensor) -> int:
        """See ``ArrayOperations.clear_not_finite``. The host waits once."""
        bad = ~torch.isfinite(x)
        x.masked_fill_(bad, 0.0)
        (count,) = self._launcher.download(bad.sum().reshape(1))
        return int(count[0])
