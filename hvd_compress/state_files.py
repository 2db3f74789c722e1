"""States of compressors in files of NumPy's ``.npz`` format, for those that have no framework's own.

Such a file has the arrays of ``memory``, and as ``state`` all the rest in JSON, with the names of the arrays in their
places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hvd_compress.files import write_whole


def write_npz(state: Mapping[str, Any], path: Path) -> None:
    """Write what ``state_dict`` returned, whole or not at all.

    Raises:
        OSError: it cannot be written: the disk is full, say. A file that was there before is as it was.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    memory = {}
    for name, held in state["memory"].items():
        memory[name] = {key: f"array{len(arrays) + number}" for number, key in enumerate(held)}
        arrays.update({place: np.asarray(held[key]) for key, place in memory[name].items()})
    text = json.dumps({**state, "memory": memory}, default=lambda number: number.item())
    write_whole(path, lambda file: np.savez(file, state=np.array(text), **arrays))


def read_npz(path: Path | str) -> dict[str, Any]:
    """Return what ``write_npz`` wrote; what is in it is not checked.

    Raises:
        ValueError: it cannot be read, is not such a file, or not whole; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            state: dict[str, Any] = json.loads(str(file["state"]))
            state["memory"] = {
                name: {key: file[place] for key, place in held.items()} for name, held in state["memory"].items()
            }
    except Exception as error:  # whatever the readers of zip, of NumPy's format and of JSON make of other files
        raise ValueError(f"{path} is not the state of a compressor, or not whole: {error}") from error
    return state
