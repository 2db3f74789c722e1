"""Arrays of NumPy: what the kernel sets that run on the host have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hvd_compress.kernels.protocol import Float32


class HostArrays:
    """``ArrayOperations`` on NumPy arrays; a kernel set says how ``empty`` ones are made."""

    pooled = False
    identity = ""
    overlap = staticmethod(np.may_share_memory)

    def empty(self, n: int) -> Float32:
        """See ``ArrayOperations.empty``."""
        raise NotImplementedError

    def empty_on_host(self, n: int) -> Float32:
        """See ``ArrayOperations.empty_on_host``."""
        return self.empty(n)

    def reserve(self, nbytes: int) -> None:
        """See ``ArrayOperations.reserve``; an operating system gives memory when it is written to, and so can promise
        none."""

    def view(self, x: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """See ``ArrayOperations.view``."""
        return x.view(dtype)

    def copy(self, x: Float32) -> Float32:
        """See ``ArrayOperations.copy``."""
        return x.copy()

    def joined(self, parts: Sequence[Float32]) -> Float32:
        """See ``ArrayOperations.joined``."""
        return np.concatenate(parts)

    def scaled(self, x: Float32, factor: float, out: Float32 | None = None) -> Float32:
        """See ``ArrayOperations.scaled``."""
        product: Float32 = np.multiply(x, np.float32(factor), out=out)
        return product

    def on_host(self, x: NDArray[Any]) -> NDArray[Any]:
        """See ``ArrayOperations.on_host``."""
        return x

    def from_host(self, x: NDArray[Any]) -> NDArray[Any]:
        """See ``ArrayOperations.from_host``."""
        return x

    def beside(self, x: Float32, y: Float32) -> Float32:
        """See ``ArrayOperations.beside``."""
        return y

    def if_finite(self, x: Float32, otherwise: Float32 | None) -> Float32:
        """See ``ArrayOperations.if_finite``."""
        if self.all_finite(x):
            return x
        return np.zeros_like(x) if otherwise is None else otherwise

    def flat(self, piece: Float32) -> Float32:
        """See ``ArrayOperations.flat``."""
        return piece

    def put(self, x: Float32, numbers: Float32 | float) -> None:
        """See ``ArrayOperations.put``."""
        x[...] = numbers

    def is_vector(self, x: Any, n: int) -> bool:
        """See ``ArrayOperations.is_vector``."""
        return isinstance(x, np.ndarray) and x.shape == (n,) and x.dtype == np.float32

    def all_finite(self, x: Float32) -> bool:
        """See ``ArrayOperations.all_finite``."""
        with np.errstate(over="ignore", invalid="ignore"):
            # one pass that only reads; the sum of finite values may overflow, so that a bad one has to be looked for
            return math.isfinite(float(x.sum())) or bool(np.isfinite(x).all())

    def clear_not_finite(self, x: Float32) -> int:
        """See ``ArrayOperations.clear_not_finite``."""
        bad = ~np.isfinite(x)
        x[bad] = 0
        return int(bad.sum())
