"""What happened in a run, as one JSON file that tables and pictures are made of; ``hvd-compress compare`` reads it.

- ``schema``, ``label``, ``flags``, ``compression`` (the configuration, or the name of Horovod's own), ``data``,
  ``model``, ``ranks``, ``threads``, ``machine``, ``versions``;
- ``curve``, every few steps: ``step``, the mean ``loss`` since the entry before, ``sent_bytes`` so far;
- ``epochs``: ``epoch``, ``sent_bytes`` so far, ``seconds`` of training, and ``test_accuracy`` (0 to 1) and
  ``test_loss`` where there were tests;
- ``steps``, each step on rank 0: ``sent_bytes``, and seconds by phase;
- ``stats`` (``Compressor.stats()["total"]`` and what a method says of itself, or null), ``weights`` (a hash, or
  nothing), ``complete``.

Bytes are what rank 0 hands to collectives. With two ranks that is also what it sends.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from hvd_compress.files import write_whole

SCHEMA = 1
PHASES = ("compute", "compress", "wait", "decompress")


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
        """The bytes of all steps so far."""
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
        """Write the JSON file, whole or not at all; make its folder."""
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
        write_whole(path, lambda file: file.write(json.dumps(content).encode() + b"\n"))

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on with the same record."""
        return {"curve": self.curve, "epochs": self.epochs, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        self.curve, self.epochs, self.steps = state["curve"], state["epochs"], state["steps"]


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the installed packages among ``packages``."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return what the processor is called, or its architecture where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def machine() -> dict[str, Any]:
    """Return the processor and the number of cores that this process may use; no names."""
    return {"processor": processor(), "cores": len(os.sched_getaffinity(0))}
