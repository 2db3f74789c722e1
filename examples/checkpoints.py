"""Checkpoints that a run continues from exactly, under any framework.

Rank 0 saves what is the same everywhere: model, optimizer, record. What a compressor holds back differs from rank
to rank, so every rank saves its own, under a name with the epoch in it. ``FILE`` is replaced last: whenever the run is
cut off, ``FILE`` and the files that belong with it are of one epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from job import Job


class CheckpointError(Exception):
    """The checkpoint cannot be used; raised on every rank alike."""


def save(path: Path, epochs: int, job: Job) -> None:
    """Save the state after ``epochs`` epochs."""
    own = _own(path, epochs, job)
    if job.compressor is not None:
        job.save_compressor(own)
    job.gather("saved")  # every rank's file is there before FILE speaks of it
    if job.hvd.rank() == 0:
        partial = path.with_name(f"{path.name}.partial")
        job.save(partial, {"epochs": epochs, "record": job.record.state(), **_identity(job)})
        partial.replace(path)
    job.gather("replaced")
    if job.compressor is not None:
        _own(path, epochs - 1, job).unlink(missing_ok=True)


def restore(path: Path, job: Job) -> int:
    """Load what ``save`` saved; returns the number of epochs done, 0 if there is no checkpoint yet.

    Model and optimizer are loaded on rank 0 only; the broadcasts that follow bring them to the others.

    Raises:
        CheckpointError: on every rank, whichever rank's file is missing, damaged or another run's.
    """
    epochs, problem = 0, ""
    if job.hvd.rank() == 0 and path.exists():
        try:
            about, take = job.load(path)
            now = _identity(job)
            if now != (found := {key: about[key] for key in now}):
                raise ValueError(f"it is of a run with {found}, this one has {now}")
            take()
            job.record.restore(about["record"])
            epochs = int(about["epochs"])
        except Exception as error:  # whatever a damaged file makes a framework raise
            problem = f"{path} cannot be resumed from: {error}"
    _agree(problem, job)
    epochs = job.gather(epochs)[0]
    if epochs and job.compressor is not None:
        own = _own(path, epochs, job)
        try:
            job.load_compressor(own)
            job.compressor.state_dict()  # raises what else the first step would, if the state cannot be used
        except Exception as error:
            problem = f"{own} cannot be resumed from: {error}"
    _agree(problem, job)
    return epochs


def _identity(job: Job) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {"ranks": job.hvd.size(), "compression": job.record.about["compression"]}


def _own(path: Path, epochs: int, job: Job) -> Path:
    return path.with_name(f"{path.name}.epoch{epochs}.rank{job.hvd.rank()}")


def _agree(problem: str, job: Job) -> None:
    problems = sorted({text for text in job.gather(problem) if text})
    if problems:
        raise CheckpointError("; ".join(problems))
