"""What happened in a run, as one JSON file that tables and pictures are made of (for any framework):
``hvd-compress compare`` reads it (``hvd_compress.cli.records``).

- ``schema``, ``label``, ``flags``, ``compression`` (the configuration, or the name of Horovod's own), ``data``,
  ``model``, ``ranks``, ``threads``, ``machine``, ``versions``;
- ``curve``, every few steps: ``step``, the mean ``loss`` of all ranks since the entry before, ``sent_bytes`` so far;
- ``epochs``: ``epoch``, ``test_accuracy``, ``test_loss``, ``sent_bytes`` so far, ``seconds`` of training;
- ``steps``, each step on rank 0: ``sent_bytes``, and seconds by phase;
- ``stats`` (``Compressor.stats()["total"]``, or null), ``weights`` (a hash), ``complete``.

Bytes are what rank 0 hands to collectives. With two ranks that is also what it sends.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from hvd_compress.cli.records import PHASES, SCHEMA


@dataclass
class Record:
    """Filled in as the run goes on; ``write`` may be called at any time."""

    about: dict[str, Any]
    curve: dict[str, list[float]] = field(default_factory=lambda: {"step": [], "loss": [], "sent_bytes": []})
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in ("sent_bytes", *PHASES)})
    stats: dict[str, Any] | None = None
    weights: str = ""
    complete: bool = False

    @property
    def sent_bytes(self) -> int:
        """So far."""
        return int(sum(self.steps["sent_bytes"]))

    def add_step(self, sent_bytes: int, seconds: dict[str, float]) -> None:
        """Note a step: the bytes this rank handed to collectives, and seconds by phase."""
        self.steps["sent_bytes"].append(sent_bytes)
        for phase in PHASES:
            self.steps[phase].append(round(seconds[phase], 6))

    def add_loss(self, loss: float) -> None:
        """Note the mean loss since the last time, after ``add_step``."""
        self.curve["step"].append(len(self.steps["sent_bytes"]))
        self.curve["loss"].append(round(loss, 5))
        self.curve["sent_bytes"].append(self.sent_bytes)

    def write(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        content = {
            "schema": SCHEMA,
            **self.about,
            "curve": self.curve,
            "epochs": self.epochs,
            "steps": self.steps,
            "stats": self.stats,
            "weights": self.weights,
            "complete": self.complete,
        }
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        partial.replace(path)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same record."""
        return {"curve": self.curve, "epochs": self.epochs, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        self.curve, self.epochs, self.steps = state["curve"], state["epochs"], state["steps"]


class Stopwatch:
    """Splits a step into phases, with the help of ``Compressor.stats``; without it, all of synchronize is waiting.

    What compression costs is taken out of the phase it was spent in, so that the four add up to the step.
    """

    def __init__(self, compressor: Any, dense_bytes: int) -> None:
        self._compressor = compressor
        self._dense_bytes = dense_bytes
        self._marks: list[tuple[float, float, float, int]] = []

    def mark(self) -> None:
        """Call at the start of a step, before and after ``optimizer.synchronize()``, and at the step's end."""
        compress, decompress, sent = 0.0, 0.0, 0
        if self._compressor is not None:
            total = self._compressor.stats()["total"]
            compress, decompress = total["seconds"]["compress"], total["seconds"]["decompress"]
            sent = total["sent_bytes"]
        self._marks.append((perf_counter(), compress, decompress, sent))

    def take(self) -> tuple[int, dict[str, float]]:
        """Bytes sent and seconds by phase of the step whose four marks have been set."""
        begin, before, after, end = self._marks
        self._marks = []
        own = {"compress": end[1] - begin[1], "decompress": end[2] - begin[2]}
        wait = (after[0] - before[0]) - (after[1] - before[1]) - (after[2] - before[2])
        compute = end[0] - begin[0] - wait - sum(own.values())
        sent = end[3] - begin[3] if self._compressor is not None else self._dense_bytes
        return sent, {"compute": compute, "wait": wait, **own}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the installed packages among ``packages``."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The processor and the number of cores that this process may use; no names."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"processor": models[0] if models else platform.machine(), "cores": len(os.sched_getaffinity(0))}
