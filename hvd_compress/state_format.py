"""The format of checkpoints: what a state holds, the checksum over it, and the checks before anything is taken over.

A state is one rank's, a dict of plain data and arrays with exactly these keys (``rates`` may be missing):

============== ==========================================================================================
key            value
============== ==========================================================================================
``version``    ``STATE_VERSION``
``compressor`` the compressor's name
``rank``       whose state it is, of so many
``workers``    workers
``step``       how many steps it has seen: the largest of ``steps``, if there are buckets
``layout``     a list of the parameters' names for every bucket; empty before the first step
``steps``      a list of the buckets' own counts of steps, in the order of ``layout``
``algorithm``  a list of what the algorithm keeps for every bucket (plain data by name), in the same order
``memory``     by parameter's name, then by array's name (``residual``): what is held back, flat, float32; and, as
               ``mean_momentum``, the momentum of a parameter's mean, which is the same on all ranks
``loss_scale`` the loss scale in whose unit ``memory`` is, of ``use_grad_scaler``; 1 without
``rates``      the learning rate by parameter's name in whose unit ``memory`` is, with ``memory_unit="update"``
``flushed``    whether the last step was a flush: nothing is held back, and the states of all ranks are alike
``shared``     what the compressor keeps for no bucket in particular: plain data by name
``checksum``   SHA-256 over all of the above, in hexadecimal
============== ==========================================================================================

Plain data is None, bools, ints of at most 64 bits, floats, text, and lists and dicts of them; whoever stores a state
may keep tuples as lists, NumPy's numbers as Python's and arrays as tensors: the checksum stays what it is.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hvd_compress.kernels import Float32

STATE_VERSION = 2
"""Version 1, which no release has had, was without a checksum."""

MEAN_MOMENTUM = "mean_momentum"
"""The key of the momentum that a parameter's mean gets, among what ``memory`` has of the parameter."""

DEPTH = 16
"""Lists and dicts within each other that plain data may have."""

_KINDS: dict[str, type] = {
    "version": int,
    "compressor": str,
    "rank": int,
    "workers": int,
    "step": int,
    "layout": list,
    "steps": list,
    "algorithm": list,
    "memory": dict,
    "flushed": bool,
    "loss_scale": float,
    "shared": dict,
    "checksum": str,
}

_OPTIONAL: dict[str, type] = {"rates": dict}
"""What a state has only if it says something."""


def seal(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with the checksum of what is in it."""
    content = {key: value for key, value in state.items() if key != "checksum"}
    return {**content, "checksum": checksum(content)}


def empty_state(compressor: str) -> dict[str, Any]:
    """Return the state of a compressor that has not seen a step."""
    return {
        "version": STATE_VERSION,
        "compressor": compressor,
        "rank": 0,
        "workers": 1,
        "step": 0,
        "layout": [],
        "steps": [],
        "algorithm": [],
        "memory": {},
        "flushed": False,
        "loss_scale": 1.0,
        "shared": {},
    }


def checksum(content: Any) -> str:
    """Return the SHA-256 of plain data and arrays, in hexadecimal. The order of a dict's keys is of no account."""
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def check_state(compressor: str, state: Any) -> None:
    """Raise unless ``state`` is, unchanged, what ``state_dict`` of a compressor of this name returned.

    Raises:
        TypeError: it is not a state; the message names the key that is missing, unknown or of the wrong type.
        ValueError: it is of another version or compressor, a value in it cannot be, or its checksum is another.
    """
    if not isinstance(state, dict):
        raise TypeError(f"not a compressor's state: it is of type {type(state).__name__}")
    version = state.get("version")
    if isinstance(version, int) and version != STATE_VERSION:
        raise ValueError(f"the state has version {version!r}, this library reads {STATE_VERSION}")
    known = _KINDS | {key: kind for key, kind in _OPTIONAL.items() if key in state}
    if state.keys() != known.keys():
        lacks = ", ".join(sorted(known.keys() - state.keys())) or "nothing"
        strange = ", ".join(sorted(map(repr, state.keys() - known.keys()))) or "nothing"
        raise TypeError(f"not a compressor's state: of its keys it lacks {lacks}, and it has {strange} besides")
    for key, kind in known.items():
        if not isinstance(state[key], kind) or (isinstance(state[key], bool) and kind is not bool):
            raise TypeError(f"not a compressor's state: {key!r} is of type {type(state[key]).__name__}")
    if state["compressor"] != compressor:
        raise ValueError(f"the state is of compressor {state['compressor']!r}, this is {compressor!r}")
    _check_kinds(state)
    _check_values(state)
    for name, arrays in state["memory"].items():
        for key, array in arrays.items():
            memory_array(f"the saved {key} of {name!r}", array)
    if not hmac.compare_digest(checksum({k: v for k, v in state.items() if k != "checksum"}), state["checksum"]):
        raise ValueError("the state is damaged or was changed: its checksum is not that of its content")


def on_host(state: Any) -> Any:
    """Return a state whose arrays are on the host, wherever they were loaded to (``torch.load(map_location="cuda")``);
    anything that is no state, as it is."""
    memory = state.get("memory") if isinstance(state, dict) else None
    if not isinstance(memory, dict) or not all(isinstance(arrays, dict) for arrays in memory.values()):
        return state
    return {
        **state,
        "memory": {
            name: {key: array.cpu() if hasattr(array, "cpu") else array for key, array in arrays.items()}
            for name, arrays in memory.items()
        },
    }


def memory_array(what: str, array: Any) -> Float32:
    """Return a saved array as NumPy's. Raise TypeError or ValueError unless it is flat, float32 and finite."""
    try:
        values: Float32 = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or of a type that NumPy has not
        raise TypeError(f"{what} is not an array: {error}") from error
    if values.dtype != np.float32:
        raise TypeError(f"{what} has dtype {values.dtype}, not float32")
    if values.ndim != 1:
        raise ValueError(f"{what} has shape {values.shape}, but what is held back is flat")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} is not finite; restore an older state")
    return values


def _check_kinds(state: dict[str, Any]) -> None:
    """Raise TypeError unless what lies inside the state's lists and dicts is of the right type, too."""
    memory, rates = state["memory"], state.get("rates", {})
    right = {
        "steps": all(isinstance(step, int) and not isinstance(step, bool) for step in state["steps"]),
        "layout": all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in state["layout"]),
        "memory": all(isinstance(name, str) and isinstance(arrays, dict) for name, arrays in memory.items())
        and all(isinstance(key, str) for arrays in memory.values() for key in arrays),
        "algorithm": all(isinstance(kept, dict) and _is_plain(kept) for kept in state["algorithm"]),
        "shared": _is_plain(state["shared"]),
        "rates": all(isinstance(name, str) and isinstance(rate, float) for name, rate in rates.items()),
    }
    for key, holds in right.items():
        if not holds:
            raise TypeError(f"not a compressor's state: {key!r} is {_shown(state[key])}")


def _check_values(state: dict[str, Any]) -> None:
    """Raise ValueError unless the state's values are such as a training leaves."""
    layout, steps = state["layout"], state["steps"]
    if not 0 <= state["rank"] < state["workers"]:
        raise ValueError(f"the state is of rank {state['rank']} of {state['workers']}, which cannot be")
    for key in ("algorithm", "steps"):
        if len(state[key]) != len(layout):
            raise ValueError(f"the state has {len(layout)} buckets, but {key!r} of {len(state[key])}")
    if min([state["step"], *steps]) < 0:
        raise ValueError(f"the state has a negative number of steps: {state['step']}, {steps}")
    if steps and state["step"] != max(steps):
        raise ValueError(f"the state has {state['step']} steps, but its buckets have {steps}")
    if not 0 < state["loss_scale"] < math.inf:
        raise ValueError(f"the state has a loss scale of {state['loss_scale']}, which cannot be")
    for name, rate in state.get("rates", {}).items():
        if not 0 <= rate < math.inf:
            raise ValueError(f"the state has a learning rate of {rate} for {name!r}, which cannot be")
    if not all(layout):
        raise ValueError("the state has a bucket without parameters")
    placed = [name for names in layout for name in names]
    if len(set(placed)) < len(placed):
        twice = sorted({name for name in placed if placed.count(name) > 1})
        raise ValueError(f"the state has parameters in more than one place of its buckets: {', '.join(twice)}")
    if lost := sorted(set(placed) - state["memory"].keys()):
        raise ValueError(f"the state has parameters in its buckets that its memory lacks: {', '.join(lost)}")


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether ``value`` is plain data."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (list, tuple)):
        return depth < DEPTH and all(_is_plain(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return depth < DEPTH and all(isinstance(k, str) and _is_plain(one, depth + 1) for k, one in value.items())
    if isinstance(value, int):  # repr of a longer one may be refused
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, (float, str))


def _shown(value: Any) -> str:
    """Return the beginning of a value's text, for a message; of nested lists and dicts only how many they hold."""
    if isinstance(value, (list, dict)) and not _is_plain(value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.200}"


def _feed(digest: Any, value: Any) -> None:
    """Give a value to a hash, so that different values give it different bytes."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        digest.update(b"{%d" % len(value))
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(b"[%d" % len(value))
        for one in value:
            _feed(digest, one)
    elif isinstance(value, str):
        text = value.encode(errors="surrogatepass")
        digest.update(b"'%d " % len(text) + text)
    elif value is None or isinstance(value, (bool, int, float)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        array = np.ascontiguousarray(value)
        digest.update(f"array {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
