"""Taking a saved state over: buckets get their parts of it as they are made, and what does not fit is said.

``state_format`` has the format and its checks.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32
from hvd_compress.state_format import MEAN_MOMENTUM


class SavedState:
    """What ``state_dict`` returned, or nothing; buckets take their parts of it as they are made.

    ``source`` says in messages where it comes from, such as a file's path.
    """

    def __init__(self, state: dict[str, Any] | None, rank: int, workers: int, source: str) -> None:
        self.source = source
        self.shared: dict[str, Any] | None = copy.deepcopy(state["shared"]) if state else None
        """What belongs to no bucket; None if there is no state, or it has been taken."""
        self.flushed = bool(state["flushed"]) if state else False
        memory = state["memory"] if state else {}
        self._momenta: dict[str, Any] = {
            n: arrays[MEAN_MOMENTUM] for n, arrays in memory.items() if MEAN_MOMENTUM in arrays
        }
        self._memory: dict[str, dict[str, Any]] = {
            name: held
            for name, arrays in memory.items()
            if (held := {key: array for key, array in arrays.items() if key != MEAN_MOMENTUM}) or not arrays
        }
        self._state = state
        self._missing: list[str] = []
        self._told = 0
        """How many of these have been told."""
        self._taken: set[str] = set()
        self._error = _foreign(state, rank, workers) if state else ""

    @property
    def layout(self) -> list[list[str]]:
        """The names of the parameters of every bucket; none before the first step."""
        return self._state["layout"] if self._state else []

    @property
    def step(self) -> int:
        """How many steps the state has seen."""
        return int(self._state["step"]) if self._state else 0

    def restored(self, names: Sequence[str]) -> tuple[list[bool], int]:
        """Return for each parameter whether its memory comes from the state, and of how many the state has one."""
        found = [name in self._taken and name not in self._missing for name in names]
        return found, len(self._state["memory"]) if self._state else 0

    def restore(self, bucket: Bucket, parts: Mapping[str, slice]) -> int:
        """Give a new bucket what was saved of the parameters in it; return the step it goes on from."""
        state = self._state
        if state is None:
            return 0
        step = int(state["step"])
        if list(parts) in state["layout"]:  # the algorithm's state and the counts are in the layout's order
            index = state["layout"].index(list(parts))
            bucket.state.update(copy.deepcopy(state["algorithm"][index]))
            step = int(state["steps"][index])
        for name, part in parts.items():
            arrays = bucket.memory.read(part)
            saved = self._memory.pop(name, None)
            if saved is None and name not in self._taken:
                self._missing.append(name)
            self._taken.add(name)
            if saved is not None:
                self._restore_parameter(name, saved, arrays)
                bucket.memory.write(part, arrays)
        return step

    def newly_missing(self) -> list[str]:
        """Return the parameters with buckets of which the state has nothing, but for those returned before."""
        told, self._told = self._told, len(self._missing)
        return self._missing[told:]

    def remaining(self) -> dict[str, dict[str, Any]]:
        """Return what no bucket has asked for, as copies, float32."""
        remaining = {
            name: {key: np.array(array, np.float32) for key, array in arrays.items()}
            for name, arrays in self._memory.items()
        }
        for name, momentum in self._momenta.items():
            remaining.setdefault(name, {})[MEAN_MOMENTUM] = np.array(momentum, np.float32)
        return remaining

    def take_momenta(self, names: Collection[str]) -> dict[str, Any]:
        """Return the saved momenta of the means of these parameters, which then are no longer here."""
        return {name: self._momenta.pop(name) for name in names if name in self._momenta}

    def rescale(self, factor: float) -> None:
        """Multiply what no bucket has asked for."""
        self._momenta = {name: np.array(m, np.float32) * np.float32(factor) for name, m in self._momenta.items()}
        self._memory = {
            name: {key: np.array(array, np.float32) * np.float32(factor) for key, array in arrays.items()}
            for name, arrays in self._memory.items()
        }

    def problem(self, known: Sequence[str], *, complete: bool, grown: bool = False) -> str:
        """Return what is wrong with the state for the parameters ``known`` so far, or nothing.

        With ``complete``, there are no others: whatever is left over in the state is of another model, and every
        parameter has a place in its buckets. With ``grown``, some may have come since training went on from the state.
        """
        if self._error:
            return f"{self.source}: {self._error}"
        missing = sorted(set(self._missing) & set(known))
        strange = sorted(set(self._memory) - set(known)) if complete or missing else []
        if complete and self._momenta:
            return f"the saved state has momenta of parameters this model lacks: {', '.join(sorted(self._momenta))}"
        if strange:
            lacks = f"; and lacks {', '.join(missing)}" if missing else ""
            return f"{self.source} has parameters this model does not compress: {', '.join(strange)}{lacks}"
        if missing and (complete or not grown):
            return f"{self.source} lacks the parameters {', '.join(missing)}"
        placed = {name for names in self.layout for name in names}
        if complete and placed and (lost := sorted(set(known) - placed)):
            return f"{self.source} has no bucket for the parameters {', '.join(lost)}"
        return ""

    def _restore_parameter(self, name: str, saved: Mapping[str, Any], arrays: Mapping[str, Float32]) -> None:
        """Copy what was saved of a parameter to where it belongs, or note what does not fit."""
        if saved.keys() != arrays.keys():
            kept = ", ".join(sorted(arrays)) or "nothing"
            self._error = (
                f"it has {', '.join(sorted(saved)) or 'nothing'} of {name!r}, and this compressor keeps {kept}"
            )
            return
        for key, array in arrays.items():
            values = np.asarray(saved[key])
            if values.shape != array.shape:
                self._error = f"the saved {key} of {name!r} has shape {values.shape}, not {array.shape}"
            else:
                array[:] = values


def _foreign(state: dict[str, Any], rank: int, workers: int) -> str:
    """Return what is wrong with taking this state over here: it is another rank's and holds gradients back."""
    if (rank, workers) == (state["rank"], state["workers"]):
        return ""
    held = (array for arrays in state["memory"].values() for key, array in arrays.items() if key != MEAN_MOMENTUM)
    if state["flushed"] or not any(np.any(np.asarray(array)) for array in held):
        return ""
    return (
        f"it is rank {state['rank']}'s of {state['workers']} and holds gradients back; this is rank {rank} of "
        f"{workers}: restore each rank's own state, or call flush() before the last step that precedes saving one for "
        "all"
    )
