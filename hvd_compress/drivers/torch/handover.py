"""A compressor goes from an optimizer that is gone to a new one: what it holds back moves along, by parameter."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvd_compress.runtime.bucketing import Parameter

logger = logging.getLogger(__name__)


def moved(state: dict[str, Any], before: Sequence[Parameter], after: Sequence[Parameter]) -> dict[str, Any] | None:
    """Return the state that an engine for the parameters ``after`` begins with, of one that had those ``before``; None
    if that had none.

    Parameters of the same name and size keep what is held back of them, new ones begin with zeros. What is held back
    of others is lost, and said. Buckets are laid out anew unless all parameters are the same.
    """
    if not before:
        return None
    sizes = {parameter.name: parameter.size for parameter in after}
    kept = {parameter.name for parameter in before if sizes.get(parameter.name) == parameter.size}
    if len(kept) == len(before) == len(after):
        return state
    for name, arrays in state["memory"].items():
        norm = max((float(np.linalg.norm(np.asarray(array))) for array in arrays.values()), default=0.0)
        if name not in kept and norm:
            logger.warning(
                "what was held back of %r (norm %.3g) is lost: the new optimizer has none of this name and size",
                name,
                norm,
            )
    held: dict[str, Any] = next(iter(state["memory"].values()))
    memory = {name: {key: np.zeros(size, np.float32) for key in held} for name, size in sizes.items()}
    memory.update({name: arrays for name, arrays in state["memory"].items() if name in kept})
    return {**state, "layout": [], "steps": [], "algorithm": [], "memory": memory}
