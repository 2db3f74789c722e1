"""Checkpoints that a run continues from exactly (PyTorch).

Rank 0 saves what is the same everywhere: model, optimizer, record. What a compressor holds back differs from rank
to rank, so every rank saves its own, under a name with the epoch in it. ``FILE`` is replaced last: whenever the run is
cut off, ``FILE`` and the files that belong with it are of one epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch

# isort: split
from records import Record


class CheckpointError(Exception):
    """The checkpoint cannot be used; raised on every rank alike."""


def save(path: Path, epochs: int, model: torch.nn.Module, optimizer: Any, record: Record, compressor: Any) -> None:
    """Save the state after ``epochs`` epochs."""
    if compressor is not None:
        torch.save(compressor.state_dict(), _own(path, epochs))
    # every rank's file is there before FILE speaks of it
    hvd.allgather_object("saved", name="checkpoint.saved")
    if hvd.rank() == 0:
        partial = path.with_name(f"{path.name}.partial")
        state = {
            "epochs": epochs,
            "ranks": hvd.size(),
            "compression": record.about["compression"],
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "record": record.state(),
        }
        torch.save(state, partial)
        partial.replace(path)
    hvd.allgather_object("replaced", name="checkpoint.replaced")
    if compressor is not None:
        _own(path, epochs - 1).unlink(missing_ok=True)


def restore(path: Path, model: torch.nn.Module, optimizer: Any, record: Record, compressor: Any) -> int:
    """Load what ``save`` saved; returns the number of epochs done, 0 if there is no checkpoint yet.

    Model and optimizer are loaded on rank 0 only; the broadcasts that follow bring them to the others.

    Raises:
        CheckpointError: on every rank, whichever rank's file is missing, damaged or another run's.
    """
    epochs, problem = 0, ""
    if hvd.rank() == 0 and path.exists():
        try:
            state = torch.load(path, weights_only=True)
            now = {"ranks": hvd.size(), "compression": record.about["compression"]}
            if now != (found := {key: state[key] for key in now}):
                raise ValueError(f"it is of a run with {found}, this one has {now}")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            record.restore(state["record"])
            epochs = state["epochs"]
        except Exception as error:  # whatever a damaged file makes torch.load raise
            problem = f"{path} cannot be resumed from: {error}"
    _agree(problem)
    epochs = hvd.broadcast_object(epochs, root_rank=0, name="checkpoint.epochs")
    if epochs and compressor is not None:
        own = _own(path, epochs)
        try:
            compressor.load_state_dict(torch.load(own, weights_only=True))
        except Exception as error:
            problem = f"{own} cannot be resumed from: {error}"
    _agree(problem)
    return int(epochs)


def _own(path: Path, epochs: int) -> Path:
    return path.with_name(f"{path.name}.epoch{epochs}.rank{hvd.rank()}")


def _agree(problem: str) -> None:
    problems = sorted({text for text in hvd.allgather_object(problem, name="checkpoint.problems") if text})
    if problems:
        raise CheckpointError("; ".join(problems))
