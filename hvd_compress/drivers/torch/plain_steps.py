"""Steps in which Horovod reduces an optimizer's gradients itself, as it does without compression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.torch import horovod_internals, tensors
from hvd_compress.drivers.torch.tensors import Original
from hvd_compress.drivers.torch.transport import await_asleep
from hvd_compress.phased import phases
from hvd_compress.runtime.engine import Engine


class PlainSteps:
    """Passes gradients on to Horovod for as many steps as the compressor says, and counts the steps by them."""

    def __init__(self, compressor: Compressor, engine: Engine, parameters: Sequence[torch.Tensor]) -> None:
        self.left = 0
        """Gradients that are still to be passed on."""
        self.unapplied = False
        """Whether gradients have been passed on since the optimizer made its last step."""
        self._compressor = compressor
        self._engine = engine
        self._gradients = len(parameters)
        self._nbytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        self._uncounted = 0  # steps, those to come included
        self._finite: bool | None = None  # what is known of the gradients of this step

    def begin(self, came_by: int) -> bool:
        """Return whether the step that begins is the first of such steps; ``came_by`` gradients came by in the last.

        Where some did not (sparse ones, which Horovod gathers), nothing could be counted, and there are no such steps.
        """
        self.count()
        self._uncounted = self._engine.plain_steps() if came_by == self._gradients else 0
        self.left = self._uncounted * self._gradients
        return self.left > 0

    def take(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Original | None]:
        """Pass a gradient on."""
        self.left -= 1
        self.unapplied = True
        return tensors.as_horovod_takes_it(tensor)

    def count(self) -> None:
        """Count the steps whose gradients have all been passed on."""
        to_come = -(-self.left // max(1, self._gradients))  # a single rank hands over none
        steps, self._uncounted = self._uncounted - to_come, to_come
        if steps:
            self._engine.pass_over(steps, self._nbytes)
            phases(self._compressor).step_done(self._engine.step - 1, steps)

    def look_while_waiting(self, optimizer: Any) -> None:
        """Before Horovod's ``synchronize``: look at every gradient as soon as it is reduced, while others are not.

        Only where gradients are reduced in place, each by itself; the others are looked at afterwards.
        """
        self._finite = None
        handles = horovod_internals.handles(optimizer)
        if any(
            callable(handle) or isinstance(key, tuple) or context is not None
            for key, (handle, context) in handles.items()
        ):
            return
        finite = True
        for parameter, (handle, _) in handles.items():
            await_asleep(handle)
            finite = finite and tensors.is_finite(parameter.grad)
        self._finite = finite

    def finite(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Return whether the reduced gradients are finite, so that they may be applied."""
        known, self._finite = self._finite, None
        return all(map(tensors.is_finite, gradients)) if known is None else known
