"""The unit of what an optimizer's compressor holds back: that of the gradients, which a GradScaler changes, or that of
updates (``memory_unit="update"``), which the learning rates do."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.frames import callers
from hvd_compress.runtime.engine import Engine

logger = logging.getLogger(__name__)

DEPTH = 16
"""How many callers of an optimizer's hook are looked at: PyTorch's and Horovod's ``step``, and what wraps them, come
before a scaler's."""


def stepping_scaler() -> Any:
    """Return the ``GradScaler`` whose ``step`` is calling, None if there is none: it does not hand itself on."""
    for frame in islice(callers(), DEPTH):
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return frame.f_locals["self"]
    return None


class MemoryUnit:
    """Keeps what is held back in the unit of the gradients that come, or of the updates that are made of them.

    A loss scale is that of ``Compressor.use_grad_scaler``; without that, changes of the scale are followed from the
    first step on that a ``GradScaler`` makes. What the scale was before is not known then, and a state says 1.

    Args:
        compressor: the one whose memory it is.
        optimizer: returns the optimizer, or None when it is gone.
        names: those of the parameters that are compressed.
        state: a state that ``Compressor.state_dict`` returned, in whose unit the memory is; None if it is empty.
    """

    def __init__(
        self,
        compressor: Compressor,
        optimizer: Callable[[], Any],
        names: Mapping[torch.Tensor, str],
        state: Mapping[str, Any] | None,
    ) -> None:
        self._compressor = compressor
        self._optimizer = optimizer
        self._names = names
        self._scaler: weakref.ref[Any] | None = None
        self._scale_seen = 1.0
        self.load(state)

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take over the unit that a state is in, as far as it says; that of now if there is none."""
        self.loss_scale = self._present_scale() if state is None else float(state["loss_scale"])
        """What the gradients, and what is held back of them, have been multiplied by."""
        self._rates: dict[str, float] = {} if state is None else dict(state.get("rates", {}))

    @property
    def noticed_scale(self) -> float | None:
        """The scale, of a scaler that was noticed, in whose unit the memory is; None: none was. Set it to that of a
        state that has been loaded, since the state does not say it."""
        return None if self._scaler is None else self._scale_seen

    @noticed_scale.setter
    def noticed_scale(self, scale: float) -> None:
        self._scale_seen = scale

    def state(self) -> dict[str, Any]:
        """Return what a state says of its unit."""
        return {"loss_scale": self.loss_scale, **({"rates": dict(self._rates)} if self._rates else {})}

    @property
    def asks(self) -> bool:
        """Whether ``follow`` asks a scaler for its scale, which may be on a device."""
        return self._compressor.runtime.loss_scale is not None or self._scaler is not None

    def notice_scaler(self) -> None:
        """Note which ``GradScaler`` makes the optimizer's step, if one does and nobody has told the compressor."""
        if self._compressor.runtime.loss_scale is not None:
            return
        scaler, noticed = stepping_scaler(), None if self._scaler is None else self._scaler()
        if scaler is None or scaler is noticed or not scaler.is_enabled():
            return
        if self._scaler is not None:
            logger.warning(
                "another GradScaler makes the optimizer's steps now: if its scale is not that of the one before, what "
                "was held back counts as if it were. Call compression.use_grad_scaler(scaler) before the first step"
            )
        self._scaler, self._scale_seen = weakref.ref(scaler), float(scaler.get_scale())

    def follow(self, engine: Engine) -> None:
        """Convert what ``engine`` holds back to the unit of the gradients that come next. Between steps only."""
        self._follow_noticed(engine)
        scale = self._present_scale()
        if scale != self.loss_scale:
            engine.rescale(scale / self.loss_scale)
            self.loss_scale = scale
        engine.use_loss_scale(scale)
        rates = self._learning_rates()
        if rates != self._rates:
            # of a parameter that there is no rate of nothing is held back, or a state that does not say at which
            before = {name: self._rates.get(name, rate) for name, rate in rates.items()}
            # no number of gradients at a rate of zero makes an update: the unit stays that of the last other rate
            self._rates = {name: rate or before[name] for name, rate in rates.items()}
            changed = {name: rate for name, rate in self._rates.items() if rate != before[name]}
            if changed:
                engine.rescale_held({name: before[name] / rate for name, rate in changed.items()})

    def _follow_noticed(self, engine: Engine) -> None:
        """Convert as the scaler says that was noticed; to its unit, if the compressor has been told of one since."""
        scaler = None if self._scaler is None else self._scaler()
        if self._compressor.runtime.loss_scale is not None:
            if self._scaler is not None:
                self.loss_scale, self._scaler = self._scale_seen, None
        elif scaler is not None and (scale := float(scaler.get_scale())) != self._scale_seen:
            engine.rescale(scale / self._scale_seen)
            self._scale_seen = scale

    def _present_scale(self) -> float:
        scale = self._compressor.runtime.loss_scale
        return 1.0 if scale is None else float(scale())

    def _learning_rates(self) -> dict[str, float]:
        """Return the learning rate of each parameter whose memory is in units of updates."""
        optimizer = self._optimizer()
        if self._compressor.memory_unit != "update":
            return {}
        if optimizer is None:
            return self._rates
        return {
            self._names[parameter]: float(group["lr"])
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter in self._names
        }
