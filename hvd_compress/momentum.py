"""Momentum of means: what momentum SGD does to a gradient, done before the optimizer gets it.

A compressor that applies the momentum itself (DGC) cannot do so to a parameter that is left to Horovod, or to weight
decay: neither passes its memory. Both are known to every worker alike, the one as a mean and the other as the weights,
and so every worker applies the same momentum to them and no replica drifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hvd_compress.kernels import Float32, Kernels


class MeanMomentum:
    """The momentum of momentum SGD, of every parameter that has one here: ``u = beta*u + x``, by the parameter's name.

    ``x`` is the mean of the gradients plus ``weight_decay`` times the weights, or the latter alone where the mean has
    had its momentum. What the optimizer gets is ``u``, or with ``nesterov`` ``x + beta*u``. All float32, flat, in the
    unit of the mean, and the same on every worker. Where the means are on a device, so is all that is calculated.

    Args:
        beta: the momentum factor, in [0, 1).
        nesterov: apply it as Nesterov's.
        clip: Euclidean norm that a mean, as it is without a loss scale, is scaled down to before all this; None for
            any.
        weight_decay: what the weights are multiplied by.
    """

    kernels: Kernels
    """Those of the device that parameters are on, or the host's; whoever runs the steps sets them."""

    def __init__(self, beta: float, *, nesterov: bool, clip: float | None, weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self._beta = np.float32(beta)
        self._nesterov = nesterov
        self._clip = clip
        self._momenta: dict[str, Float32] = {}

    def of_mean(
        self, name: str, mean: Float32, decay: Float32 | None, loss_scale: float = 1.0
    ) -> tuple[Float32, Float32]:
        """Return what the optimizer gets for a parameter's mean, a new array, and the momentum to ``keep`` if the step
        counts.

        ``decay`` is what weight decay adds to the gradient, in the unit of the mean, or None. The mean is one of
        gradients that were multiplied by ``loss_scale``.
        """
        kernels = self.kernels
        with np.errstate(over="ignore", invalid="ignore"):
            if self._clip is not None:
                norm, limit = kernels.norm([mean], True), self._clip * loss_scale
                if limit < norm < np.inf:
                    mean = kernels.scaled(mean, limit / norm)
            if decay is not None:
                mean = kernels.copy(mean)
                mean += decay
            return self._advance(name, mean)

    def of_decay(self, name: str, decay: Float32) -> tuple[Float32, Float32]:
        """Return what is added to the mean of a parameter whose gradients have had their momentum, and the momentum."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._advance(name, decay)

    def keep(self, momenta: Mapping[str, Float32]) -> None:
        """Remember the momenta of a step that counts, by parameter. One that is not finite is forgotten: it would
        make every later step so."""
        for name, momentum in momenta.items():
            before = self._momenta.get(name)
            beside = None if before is None else self.kernels.beside(momentum, before)
            self._momenta[name] = self.kernels.if_finite(momentum, beside)

    def rescale(self, factor: float) -> None:
        """Multiply all momenta by ``factor``: gradients come in another unit from now on."""
        self._momenta = {name: momentum * np.float32(factor) for name, momentum in self._momenta.items()}

    def restore(self, momenta: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
        """Take over the momenta of a saved state. ``sizes`` are the element counts of the parameters there are.

        Returns what is wrong with them, or nothing.
        """
        for name, momentum in momenta.items():
            array = np.array(momentum, np.float32)
            if array.shape != (sizes.get(name),):
                return f"the saved momentum of {name!r} has shape {array.shape}, not ({sizes.get(name, 0)},)"
            self._momenta[name] = array
        return ""

    def clear(self) -> None:
        """Forget all momenta."""
        self._momenta.clear()

    def state(self) -> dict[str, Float32]:
        """Return copies of the momenta on the host, by parameter."""
        return {name: np.array(self.kernels.on_host(momentum)) for name, momentum in self._momenta.items()}

    def _advance(self, name: str, x: Float32) -> tuple[Float32, Float32]:
        before, kernels = self._momenta.get(name), self.kernels
        momentum = kernels.copy(x)
        if before is not None:
            momentum += kernels.beside(x, before) * self._beta
        if not self._nesterov:
            return kernels.copy(momentum), momentum
        result = kernels.scaled(momentum, float(self._beta))
        result += x
        return result, momentum
