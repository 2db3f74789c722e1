"""A compressor goes from an optimizer that is gone to a new one: what it holds back moves along, by parameter."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.state_format import MEAN_MOMENTUM

logger = logging.getLogger(__name__)


def moved(
    state: dict[str, Any], before: Sequence[Parameter], after: Sequence[Parameter], every: Mapping[str, int]
) -> dict[str, Any] | None:
    """Return the state that an engine for the parameters ``after`` begins with, of one that had those ``before``; None
    if that had none, and this one has.

    ``every`` are the element counts of all parameters of the new optimizer, compressed or not, by name. Parameters of
    the same name and size keep what is held back of them, new ones begin with zeros. What is held back of others is
    lost, and said. Buckets are laid out anew unless all parameters are the same.
    """
    if after and not before:
        return None
    sizes = {parameter.name: parameter.size for parameter in after}
    kept = {parameter.name for parameter in before if sizes.get(parameter.name) == parameter.size}
    memory: dict[str, dict[str, Any]] = {}
    for name, arrays in state["memory"].items():
        fits = {
            key: every.get(name) == np.size(array) if key == MEAN_MOMENTUM else name in kept
            for key, array in arrays.items()
        }
        norm = max((float(np.linalg.norm(np.asarray(arrays[key]))) for key in fits if not fits[key]), default=0.0)
        if norm:
            logger.warning(
                "what was held back of %r (norm %.3g) is lost: the new optimizer has none of this name and size",
                name,
                norm,
            )
        left = {key: array for key, array in arrays.items() if fits[key]}
        if left or name in kept:
            memory[name] = left
    if len(kept) == len(before) == len(after):
        return {**state, "memory": memory}
    held: set[str] = set()
    for arrays in state["memory"].values():
        held |= arrays.keys() - {MEAN_MOMENTUM}
    for name, size in sizes.items():
        if name not in kept:
            memory[name] = {key: np.zeros(size, np.float32) for key in held} | memory.get(name, {})
    return {**state, "layout": [], "steps": [], "algorithm": [], "memory": memory}
