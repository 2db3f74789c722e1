"""Records of training runs, one JSON file a run, are read here; ``recording.record`` says what one holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hvd_compress.recording.record import PHASES, SCHEMA

Run = dict[str, Any]


def read(path: Path) -> Run:
    """Return a record that is read from a file.

    Raises:
        ValueError: it is none, or of a run that took no step.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a record: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not content.get("epochs"):
        raise ValueError(f"{path} is not a record of schema {SCHEMA} with at least one epoch")
    steps = content.get("steps", {})
    if not all(steps.get(key) for key in ("sent_bytes", *PHASES)):
        raise ValueError(f"{path} is the record of a run that took no step: there is nothing to compare")
    return content


def collect(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the records among ``paths``, and the names of other JSON files in the folders, which are left out.

    Files are in the order given; of a folder all records are taken, those that sent most first.

    Raises:
        ValueError: a file is not a record, or a folder holds none.
    """
    runs: list[Run] = []
    others: list[str] = []
    for path in paths:
        if not path.is_dir():
            runs.append(read(path))
            continue
        found = []
        for file in sorted(path.glob("*.json")):
            try:
                found.append(read(file))
            except ValueError:
                others.append(str(file))
        if not found:
            raise ValueError(f"{path} holds no record, as hvd_compress.Recorder and the examples' --record write")
        runs += sorted(found, key=lambda run: -summary(run)["step_mb"])
    return runs, others


def summary(record: Run) -> dict[str, Any]:
    """Return the figures of a table row.

    They are accuracy in % (None: it was not tested), MB (10^6 bytes) of the median step and in total, and median
    milliseconds of a step and of its phases; these medians need not add up.
    """
    steps, accuracy = record["steps"], record["epochs"][-1].get("test_accuracy")
    whole = [sum(parts) for parts in zip(*(steps[phase] for phase in PHASES), strict=True)]
    return {
        "label": record["label"],
        "accuracy": None if accuracy is None else 100 * accuracy,
        "step_mb": median(steps["sent_bytes"]) / 1e6,
        "total_mb": sum(steps["sent_bytes"]) / 1e6,
        "step_ms": 1000 * median(whole),
        **{f"{phase}_ms": 1000 * median(steps[phase]) for phase in PHASES},
    }


def experiments(runs: Sequence[Run]) -> list[list[Run]]:
    """Return groups of runs that can be compared: of the same data, model and number of ranks. Orders are kept."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if all(run[key] == group[0][key] for key in ("data", "model", "ranks")):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def labels(runs: Sequence[Run]) -> list[str]:
    """Return the runs' labels; where several have the same one, with the seed."""
    plain = [str(run["label"]) for run in runs]
    return [
        f"{label}, seed {run['flags']['seed']}" if plain.count(label) > 1 and "seed" in run.get("flags", {}) else label
        for run, label in zip(runs, plain, strict=True)
    ]
