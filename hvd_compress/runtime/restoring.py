"""A saved state that is taken over bit by bit, as a graph turns out to have the buckets it speaks of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hvd_compress.runtime.agreement import Parameter, foreign

if TYPE_CHECKING:
    from hvd_compress.runtime.graph_step import Slot


class Saved:
    """What ``state_dict`` returned, or nothing. Parameters of a call that has not been traced yet are kept."""

    def __init__(self, state: dict[str, Any] | None, rank: int, workers: int) -> None:
        self._memory: dict[str, dict[str, Any]] = dict(state["memory"]) if state else {}
        self._state = state
        self._missing: list[str] = []
        self._error = foreign(state, rank, workers) if state else ""

    def restore(self, slot: Slot, index: int) -> None:
        """Give a new slot what was saved of it."""
        state = self._state
        if state is None:
            return
        names = [name for name, _ in slot.members]
        steps = state.get("steps", [])
        slot.step = int(steps[index]) if index < len(steps) else int(state["step"])
        if index < len(state["layout"]) and state["layout"][index] == names:
            slot.bucket.state.update(copy.deepcopy(state["algorithm"].get(slot.bucket.name, {})))
        offset = 0
        for name, size in slot.members:
            arrays = self._memory.pop(name, None)
            if arrays is None:
                self._missing.append(name)
            for key, array in (arrays or {}).items():
                values = np.asarray(array, dtype=np.float32)
                if values.shape != (size,):
                    self._error = f"the saved {key} of {name!r} has shape {values.shape}, not ({size},)"
                else:
                    slot.bucket.memory.arrays()[key][offset : offset + size] = values
            offset += size

    def remaining(self) -> dict[str, dict[str, Any]]:
        """What no slot has asked for."""
        return self._memory

    def problem(self, parameters: Sequence[Parameter]) -> str:
        """What is wrong with the state for these, or nothing."""
        if self._error:
            return self._error
        missing = sorted(set(self._missing) & {parameter.name for parameter in parameters})
        if missing and self._memory:
            return (
                f"the saved state has parameters this model does not compress: {', '.join(sorted(self._memory))}; "
                f"and lacks {', '.join(missing)}"
            )
        return ""
