"""What a run tells TensorBoard: the numbers of its record, while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Scalars:
    """Written by the rank that is given a folder; on the others every method does nothing.

    tensorboardX writes TensorBoard's files with neither framework, so that the two examples write the same.

    - ``train/loss``: the mean of all ranks; ``test/accuracy``, ``test/loss``, after every epoch;
    - ``bytes/step``, ``bytes/total``: handed to collectives by rank 0, in a step and so far;
    - ``compression/ratio``: times smaller than the gradient in float32; ``compression/achieved``, for compressors that
      select: elements sent over elements meant to be sent, so far;
    - ``ms/step``, and its phases ``ms/compute``, ``ms/wait``, ``ms/compress``, ``ms/decompress``.

    What is of a step is the mean of the steps since the last time.

    A run that goes on from a checkpoint adds a file of its own; what an interrupted epoch left behind in an older one
    is hidden by TensorBoard (``purge_step``).
    """

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        self._writer: Any = None
        if folder is not None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(folder), purge_step=step + 1 if step else None, filename_suffix=f".step{step}"
            )

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def written(self) -> bool:
        """Whether this rank writes them."""
        return self._writer is not None

    def add(self, step: int, values: dict[str, float]) -> None:
        """Scalars by tag, after so many steps."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
