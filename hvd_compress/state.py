"""Checkpoints of a compressor: what they hold, what is checked, and how buckets take them over.

A state is a dict of plain data and arrays. It is one rank's: ``rank`` and ``workers`` say whose, ``step`` how many
steps it has seen, ``layout`` which parameters share a bucket, ``memory`` what is held back of every parameter by name,
and ``algorithm`` what the algorithm keeps for every bucket. ``steps`` has the buckets' own counts, and ``shared`` what
belongs to no bucket.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hvd_compress.exchange import Bucket

STATE_VERSION = 1

_FORMAT: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "compressor": str,
    "rank": int,
    "workers": int,
    "step": int,
    "layout": list,
    "memory": dict,
    "algorithm": dict,
}


def check_state(compressor: str, state: Any) -> None:
    """Raise unless ``state`` is one that ``state_dict`` of a compressor of this name returned.

    Raises:
        TypeError: it is not a state; the message names the key that is missing or of the wrong type.
        ValueError: it is of another version or compressor, or a value in it cannot be.
    """
    if not isinstance(state, dict) or not set(_FORMAT) <= set(state):
        raise TypeError(f"not a compressor's state: it needs the keys {', '.join(sorted(_FORMAT))}")
    for key, kind in _FORMAT.items():
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            raise TypeError(f"not a compressor's state: {key!r} is of type {type(state[key]).__name__}")
    if state["version"] != STATE_VERSION:
        raise ValueError(f"the state has version {state['version']!r}, this library reads {STATE_VERSION}")
    if state["compressor"] != compressor:
        raise ValueError(f"the state is of compressor {state['compressor']!r}, this is {compressor!r}")
    _check_kinds(state)
    _check_values(state)


def _check_kinds(state: dict[str, Any]) -> None:
    """Raise TypeError unless what lies inside the state's lists and dicts is of the right type, too."""
    steps, layout = state.get("steps", []), state["layout"]
    right = {
        "steps": isinstance(steps, list) and all(isinstance(step, int) for step in steps),
        "layout": all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in layout),
        "memory": all(isinstance(arrays, dict) for arrays in state["memory"].values()),
        "algorithm": all(isinstance(kept, dict) for kept in state["algorithm"].values()),
    }
    for key, holds in right.items():
        if not holds:
            raise TypeError(f"not a compressor's state: {key!r} is {state[key]!r:.200}")


def _check_values(state: dict[str, Any]) -> None:
    if not 0 <= state["rank"] < state["workers"]:
        raise ValueError(f"the state is of rank {state['rank']} of {state['workers']}, which cannot be")
    for key in ("algorithm", "steps"):
        if state["layout"] and len(state.get(key) or state["layout"]) != len(state["layout"]):
            raise ValueError(f"the state has {len(state['layout'])} buckets, but {key!r} of {len(state[key])}")
    if min([state["step"], *state.get("steps", [])]) < 0:
        raise ValueError(f"the state has a negative number of steps: {state['step']}, {state.get('steps', [])}")
    placed = [name for names in state["layout"] for name in names]
    if len(set(placed)) < len(placed):
        twice = sorted({name for name in placed if placed.count(name) > 1})
        raise ValueError(f"the state has parameters in more than one place of its buckets: {', '.join(twice)}")
    for name, arrays in state["memory"].items():
        for key, array in arrays.items():
            values = np.asarray(array)
            if not np.can_cast(values.dtype, np.float64):
                raise TypeError(f"the saved {key} of {name!r} has dtype {values.dtype}, not float32")
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
            if not np.isfinite(values).all():
                raise ValueError(f"the saved {key} of {name!r} is not finite; restore an older state")


class SavedState:
    """What ``state_dict`` returned, or nothing; buckets take their parts of it as they are made."""

    def __init__(self, state: dict[str, Any] | None, rank: int, workers: int) -> None:
        self.shared: dict[str, Any] = copy.deepcopy(state.get("shared", {})) if state else {}
        self._memory: dict[str, dict[str, Any]] = dict(state["memory"]) if state else {}
        self._state = state
        self._missing: list[str] = []
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

    def restore(self, bucket: Bucket, parts: Mapping[str, slice]) -> int:
        """Give a new bucket what was saved of the parameters in it; return the step it goes on from."""
        state = self._state
        if state is None:
            return 0
        step = int(state["step"])
        if list(parts) in state["layout"]:  # the algorithm's state and the counts are in the layout's order
            index, steps = state["layout"].index(list(parts)), state.get("steps", [])
            bucket.state.update(copy.deepcopy([*state["algorithm"].values()][index]))
            step = int(steps[index]) if steps else step
        elif not state["layout"]:
            bucket.state.update(copy.deepcopy(state["algorithm"].get(bucket.name, {})))
        for name, part in parts.items():
            arrays = bucket.memory.read(part)
            saved = self._memory.pop(name, None)
            if saved is None and name not in self._taken:
                self._missing.append(name)
            self._taken.add(name)
            for key, array in (saved or {}).items():
                values, size = np.asarray(array, dtype=np.float32), part.stop - part.start
                if key not in arrays:
                    self._error = f"the saved state has a {key!r} of {name!r}, which this compressor does not keep"
                elif values.shape != (size,):
                    self._error = f"the saved {key} of {name!r} has shape {values.shape}, not ({size},)"
                else:
                    arrays[key] = values
            if saved:
                bucket.memory.write(part, arrays)
        return step

    def remaining(self) -> dict[str, dict[str, Any]]:
        """Return what no bucket has asked for, as copies, float32."""
        return {
            name: {key: np.array(array, np.float32) for key, array in arrays.items()}
            for name, arrays in self._memory.items()
        }

    def rescale(self, factor: float) -> None:
        """Multiply what no bucket has asked for."""
        self._memory = {
            name: {key: array * np.float32(factor) for key, array in arrays.items()}
            for name, arrays in self.remaining().items()
        }

    def problem(self, known: Sequence[str], *, complete: bool) -> str:
        """Return what is wrong with the state for the parameters ``known`` so far, or nothing.

        With ``complete``, there are no others: whatever is left over in the state is of another model.
        """
        if self._error:
            return self._error
        missing = sorted(set(self._missing) & set(known))
        strange = sorted(set(self._memory) - set(known)) if complete or missing else []
        if strange:
            lacks = f"; and lacks {', '.join(missing)}" if missing else ""
            return f"the saved state has parameters this model does not compress: {', '.join(strange)}{lacks}"
        return f"the saved state lacks the parameters {', '.join(missing)}" if complete and missing else ""


def _foreign(state: dict[str, Any], rank: int, workers: int) -> str:
    """Return what is wrong with taking this state over here: it is another rank's and holds gradients back."""
    if (rank, workers) == (state["rank"], state["workers"]):
        return ""
    if not any(np.any(np.asarray(array)) for arrays in state["memory"].values() for array in arrays.values()):
        return ""
    return (
        f"the saved state is rank {state['rank']}'s of {state['workers']} and holds gradients back; this is rank "
        f"{rank} of {workers}: restore each rank's own state, or call flush() before the last step "
        "that precedes saving one for all"
    )
