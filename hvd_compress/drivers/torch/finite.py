"""Whether tensors are finite: on the host at once, on a device without waiting for each."""

from __future__ import annotations

import math

import torch

from hvd_compress.drivers.torch import devices


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all elements are finite. For a tensor on a device the host waits."""
    values = _floats(tensor)
    # a sum in the tensor's own type is fast, but that of finite numbers may overflow
    return values is None or math.isfinite(float(values.sum())) or bool(values.isfinite().all())


def if_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor if all its elements are finite, else zeros. The host does not wait for a device."""
    if not devices.place(tensor):
        return tensor if is_finite(tensor) else torch.zeros_like(tensor)
    values = _floats(tensor)
    return tensor if values is None else torch.where(_largest(values).isfinite(), tensor, 0.0)


class FiniteCheck:
    """Whether all of several tensors are finite. Those on the host are looked at when they are added; a device is
    asked then, tensor by tensor, and answers when the host may wait."""

    _finite: bool
    _largest: list[torch.Tensor]

    def __init__(self) -> None:
        self.forget()

    def add(self, tensor: torch.Tensor) -> None:
        """Look at a tensor; if it is on a device, by one kernel on this thread's stream."""
        if not devices.place(tensor):
            self._finite = self._finite and is_finite(tensor)
        elif (values := _floats(tensor)) is not None:
            self._largest.append(_largest(values))

    def forget(self) -> None:
        """Begin anew: nobody will ask for what has been looked at, for its step came to nothing."""
        self._finite, self._largest = True, []

    def __call__(self) -> bool:
        """Return whether all were finite, and begin anew. The host waits once, on the stream that is current."""
        (finite, largest), self._finite, self._largest = (self._finite, self._largest), True, []
        return finite and (not largest or bool(torch.stack(largest).isfinite().all()))


def _floats(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the elements that need not be finite; None if there are none."""
    values = tensor._values() if tensor.is_sparse else tensor
    return values.detach() if values.is_floating_point() and values.numel() else None


def _largest(values: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude, a tensor without dimensions where ``values`` are, and of their type; NaN if any
    element is."""
    largest: torch.Tensor = torch.linalg.vector_norm(values, math.inf)
    return largest
