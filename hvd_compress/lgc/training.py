"""What is asked of a trainer, wherever it runs, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from hvd_compress.kernels import Float32


class TrainerDied(RuntimeError):
    """The process that trains is gone, or does not answer."""


class Sample(NamedTuple):
    """What all workers sent of a bucket in a step, one row each, the worker first whose indices they are."""

    step: int
    bucket: str
    vectors: Float32
    """float32 ``(workers, length)``, divided by the scale."""
    entries: int
    """Entries of such a vector that top-k could send, as float16, for the bytes of the learned code."""

    @property
    def name(self) -> str:
        """Return the name by which samples are sorted: by step and bucket."""
        return f"{self.step:07d}-{self.bucket}"


@dataclass(frozen=True)
class Outcome:
    """What training came to. Errors are relative and squared: of the mean of the workers' vectors, 1 is that of sending
    nothing."""

    weights: bytes
    error: float
    """Of the weights, on held-out samples."""
    top_k: float
    """Of float16 top-k at equal bytes, on the same."""
    batches: int
    samples: int
    neighbours: float = float("inf")
    """Of the means of neighbours, which need no training, on the same. The weights are theirs if it is ``error``."""

    @property
    def problem(self) -> str:
        """Return why the autoencoder should not be used, or nothing."""
        if not self.error < float("inf"):
            return f"it has had only {self.samples} vectors to learn from" if self.samples < 64 else "it diverged"
        if self.error > self.top_k:
            return (
                f"it reconstructs held-out vectors with a relative squared error of {self.error:.3f}, where top-k in "
                f"float16 has {self.top_k:.3f} for the same bytes"
            )
        return ""


class Training(Protocol):
    """A trainer, wherever it runs. Nothing here blocks but ``state``."""

    kind: str

    def feed(self, vectors: Float32, entries: int) -> None:
        """Hand over a sample. Raise TrainerDied if nobody is there to take it."""
        ...

    def stalled(self) -> bool:
        """Return whether more training would be of no use. Raise TrainerDied if nobody trains."""
        ...

    def finish(self) -> Outcome | None:
        """Ask for the outcome; return None as long as it is not there. Raise TrainerDied if it will not come."""
        ...

    def state(self) -> bytes:
        """Return everything that the trainer knows. Raise TrainerDied if it does not answer."""
        ...

    def report(self) -> dict[str, Any]:
        """Return counts for statistics."""
        ...

    def close(self) -> None:
        """End the trainer."""
        ...
