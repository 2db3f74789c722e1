"""What all workers must agree on before the first step, and what a saved state must fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import hvd_compress
from hvd_compress.compressor import Compressor
from hvd_compress.kernels import UInt8
from hvd_compress.phased import phases

STATE_VERSION = 1
RECORD_BYTES = 8192
"""Room for what the workers compare before the first step."""
WORDS = 600
"""Characters of a text in it, at most six bytes each."""


class Parameter(NamedTuple):
    """A parameter that is to be compressed: its name and element count, the same on every worker."""

    name: str
    size: int


def proposal(
    compressor: Compressor, parameters: Sequence[Parameter], step: int, layout: list[Any], error: str
) -> UInt8:
    """What a worker is about to do, in ``RECORD_BYTES`` bytes, for ``check_proposals``."""
    names = json.dumps([tuple(parameter) for parameter in parameters])
    record = {
        "version": hvd_compress.__version__,
        "compressor": _cut(describe(compressor) + compressor.fingerprint()),
        "parameters": f"{len(parameters)} ({hashlib.sha256(names.encode()).hexdigest()[:16]})",
        "step": step,
        "buckets": f"{len(layout)} ({hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:16]})",
        "error": error[:WORDS],
    }
    payload: UInt8 = np.zeros(RECORD_BYTES, np.uint8)
    text = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace")
    payload[: len(text)] = np.frombuffer(text, np.uint8)
    return payload


def describe(compressor: Compressor) -> str:
    """What the workers compare; the name alone when a schedule of the user's own has no configuration."""
    try:
        config = compressor.to_config()
    except TypeError:
        return compressor.name
    rank_local = phases(compressor).rank_local
    return repr({key: value for key, value in config.items() if key not in rank_local})


def _cut(text: str) -> str:
    """A text of any length in ``WORDS`` characters, and still another one for another text."""
    if len(text) <= WORDS:
        return text
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
    return f"{text[: WORDS - 40]}... (sha256 {digest})"


def check_proposals(proposals: UInt8) -> None:
    """Raise ValueError if the workers' proposals differ or report an error."""
    rows = proposals.reshape(-1, RECORD_BYTES)
    if (rows == rows[0]).all():
        rows = rows[:1]
    records = [json.loads(row.tobytes().rstrip(b"\0")) for row in rows]
    first = records[0]
    for rank, record in enumerate(records):
        if record["error"]:
            raise ValueError(f"rank {rank}: {record['error']}")
    advice = {
        "version": "install the same version of hvd_compress everywhere",
        "compressor": "give every rank the same arguments and packages",
        "parameters": "every rank must train the same parameters, in the same order",
        "step": "restore the state on every rank, or on none",
        "buckets": "restore the state on every rank, or on none",
    }
    for rank, record in enumerate(records):
        for key, fix in advice.items():
            if record[key] != first[key]:
                raise ValueError(
                    f"ranks disagree on the {key}: rank 0 has {first[key]}, rank {rank} has {record[key]}; {fix}"
                )


def check_state(compressor: Compressor, state: dict[str, Any]) -> None:
    """Raise unless ``state`` is one that ``state_dict`` of such a compressor returned."""
    needed = {"version", "compressor", "rank", "workers", "step", "layout", "memory", "algorithm"}
    if not isinstance(state, dict) or not needed <= set(state):
        raise TypeError(f"not a compressor's state: it needs the keys {', '.join(sorted(needed))}")
    if state["version"] != STATE_VERSION:
        raise ValueError(f"the state has version {state['version']!r}, this library reads {STATE_VERSION}")
    if state["compressor"] != compressor.name:
        raise ValueError(f"the state is of compressor {state['compressor']!r}, this is {compressor.name!r}")


def foreign(state: dict[str, Any], rank: int, workers: int) -> str:
    """What is wrong with taking this state over here: it is another rank's and holds gradients back; or nothing."""
    if (rank, workers) == (state["rank"], state["workers"]):
        return ""
    if not any(np.any(np.asarray(array)) for arrays in state["memory"].values() for array in arrays.values()):
        return ""
    return (
        f"the saved state is rank {state['rank']}'s of {state['workers']} and holds gradients back; this is rank "
        f"{rank} of {workers}: restore each rank's own state, or call flush() before the last step "
        "that precedes saving one for all"
    )
