"""The momentum of means, and weight decay, where the parameters are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from hvd_compress.drivers.torch import devices, tensors
from hvd_compress.drivers.torch.streams import DeviceStream
from hvd_compress.kernels import Float32
from hvd_compress.runtime.engine import Engine


class TensorMomentum:
    """Gives means the momentum that an engine's compressor has for them (``hvd_compress.momentum``).

    What is calculated of tensors on a device is calculated on the library's stream, where the momenta belong: so they
    may be rescaled and saved there, too.

    Args:
        names: of all parameters.
        stream: the library's, if some parameters are on a device.
    """

    def __init__(self, engine: Engine, names: Mapping[torch.Tensor, str], stream: DeviceStream | None) -> None:
        self._engine = engine
        self._names = names
        self._stream = stream

    def of_mean(self, reduced: torch.Tensor, parameter: torch.Tensor, scale: float, factor: np.float32) -> torch.Tensor:
        """Return what the optimizer gets of a gradient that Horovod has reduced, in its shape.

        ``factor`` is what the optimizer gets for a mean of 1, ``scale`` the loss scale.
        """
        engine = self._engine
        if engine.momentum is None:
            return reduced
        reduced = reduced.to(parameter.device)
        with self._reading(reduced):
            mean = tensors.array_of(reduced)
            if factor != 1:
                mean = mean * np.float32(1 / factor)
            decay = self._decay(parameter, scale / float(factor)) if self._decays else None
            result = engine.with_momentum(self._names[parameter], mean, decay)
            if factor != 1:
                result *= factor
        return self._handed(result, parameter.device).view(reduced.shape)

    def add_decay(self, mean: torch.Tensor, parameter: torch.Tensor, scale: float, factor: np.float32) -> None:
        """Add weight decay, with its momentum, to the flat mean of a compressed parameter."""
        if not self._decays:
            return
        with self._reading(parameter):
            decay = self._decay(parameter, scale / float(factor))
            added = self._engine.momentum_of_decay(self._names[parameter], decay) * factor
        mean += self._handed(added, mean.device)

    @property
    def _decays(self) -> bool:
        """Whether the compressor applies weight decay."""
        momentum = self._engine.momentum
        return momentum is not None and momentum.weight_decay > 0

    def _decay(self, parameter: torch.Tensor, factor: float) -> Float32:
        """Return what weight decay adds to the mean of a parameter's gradients, in their unit."""
        assert self._engine.momentum is not None
        return tensors.array_of(parameter) * np.float32(self._engine.momentum.weight_decay * factor)

    @contextmanager
    def _reading(self, tensor: torch.Tensor) -> Iterator[None]:
        """Work on the library's stream inside of ``with`` if this tensor of this thread's stream is on a device.

        Raises:
            MemoryError: the device has none left.
        """
        if self._stream is None or not devices.place(tensor):
            yield
            return
        self._stream.take(tensor)
        try:
            with self._stream.working():
                yield
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"no memory for the momentum of a parameter of {tensor.numel():,} elements: {error}. The step is "
                "decoded, and what it sent is lost if the optimizer does not apply it; take a smaller batch"
            ) from error

    def _handed(self, result: Float32, device: torch.device) -> torch.Tensor:
        """Return a result for whoever works on this thread's stream."""
        handed = tensors.of_array(result, device)
        if self._stream is not None and devices.place(handed):
            self._stream.hand_back([handed])
        return handed
