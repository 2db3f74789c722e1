"""Workers that are gone without having handed over what they held back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.state_format import MEAN_MOMENTUM

_log = logging.getLogger(__name__)


class Loss(NamedTuple):
    """So many workers are ``gone``, of so many that there were ``before``. The worker of rank ``teller``, the first
    that was there before, tells of it."""

    gone: int
    before: int
    teller: int


def loss_of(trained_among: Sequence[int]) -> Loss | None:
    """Return who is gone; None: nobody.

    Args:
        trained_among: of every worker that there is now, among how many it has trained last; 0 for a new one.
    """
    teller = next((rank for rank, workers in enumerate(trained_among) if workers), 0)
    before = trained_among[teller]
    gone = before - sum(workers > 0 for workers in trained_among)
    return Loss(gone, before, teller) if gone > 0 else None


def tell_of_loss(loss: Loss, memory: Mapping[str, Mapping[str, Any]]) -> None:
    """Say that workers are gone, where those that are there hold something back; ``memory`` is the teller's, as a state
    has it."""
    held = [np.asarray(array) for arrays in memory.values() for key, array in arrays.items() if key != MEAN_MOMENTUM]
    if norm := float(np.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in held))):
        _log.warning(
            "%d of %d workers are gone, and what they held back is lost; what this one holds back has norm %.3g",
            loss.gone,
            loss.before,
            norm,
        )
