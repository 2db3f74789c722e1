"""Steps in which Horovod reduces an optimizer's gradients itself, as it does without compression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.torch import tensors
from hvd_compress.drivers.torch.finite import FiniteCheck
from hvd_compress.drivers.torch.tensors import Original
from hvd_compress.phased import phases
from hvd_compress.runtime.engine import Engine


class Passed(NamedTuple):
    """The context of a gradient that was passed on, and what that was if Horovod gets another tensor."""

    original: Original | None


AS_IT_WAS = Passed(None)


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
        self._looks = compressor.nonfinite != "nan"
        self._looked_at = 0
        """Reduced gradients of this step that were looked at."""
        self._check = FiniteCheck()
        """Whether all of them are finite."""

    def begin(self, came_by: int) -> bool:
        """Return whether the step that begins is the first of such steps; ``came_by`` gradients came by in the last.

        Where some did not (sparse ones, which Horovod gathers), nothing could be counted, and there are no such steps.
        """
        self.count()
        self._look_anew()
        self._uncounted = self._engine.plain_steps() if came_by == self._gradients else 0
        self.left = self._uncounted * self._gradients
        return self.left > 0

    def take(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Passed]:
        """Pass a gradient on."""
        if self.left % self._gradients == 0:  # the first of a step; of the last one not all may have been applied
            self._look_anew()
        self.left -= 1
        self.unapplied = True
        taken, original = tensors.as_horovod_takes_it(tensor)
        return taken, AS_IT_WAS if original is None else Passed(original)

    def give_back(self, reduced: torch.Tensor, passed: Passed) -> torch.Tensor:
        """Return a gradient that Horovod has reduced, after a look at it: the others may be under way still."""
        if self._looks:
            self._looked_at += 1
            self._check.add(reduced)
        return reduced if passed.original is None else passed.original.of(reduced)

    def count(self) -> None:
        """Count the steps whose gradients have all been passed on."""
        to_come = -(-self.left // max(1, self._gradients))  # a single rank hands over none
        steps, self._uncounted = self._uncounted - to_come, to_come
        if steps:
            self._engine.pass_over(steps, self._nbytes)
            phases(self._compressor).step_done(self._engine.step - 1, steps)

    def finite(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Return whether the reduced gradients of this step are finite, so that they may be applied. The host waits
        for a device once."""
        if self._looked_at != len(gradients):
            for gradient in gradients:
                self._check.add(gradient)
        self._looked_at = 0
        return self._check()

    def _look_anew(self) -> None:
        self._looked_at = 0
        self._check.forget()
