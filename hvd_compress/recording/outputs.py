"""Where the figures of a recorded run may go while it goes on: a CSV file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol


class Output(Protocol):
    """Takes figures by name, after so many steps."""

    def add(self, step: int, figures: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class CSVOutput:
    """A CSV file: a row each time that there are figures, with the columns ``step`` and ``columns``."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, ["step", *columns])
        self._writer.writeheader()

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self._writer.writerow({"step": step, **figures})
        self._file.flush()  # somebody may look on

    def close(self) -> None:
        self._file.close()


class TensorBoardOutput:
    """A folder for TensorBoard, written by tensorboardX, which needs neither framework."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"tensorboard={str(folder)!r} needs tensorboardX ({error}): pip install 'hvd-compress[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbOutput:
    """A run of Weights & Biases; ``arguments`` are those of ``wandb.init``, such as ``mode="offline"``."""

    def __init__(self, arguments: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f"wandb={dict(arguments)!r} needs Weights & Biases ({error}): pip install 'hvd-compress[wandb]'"
            ) from error
        self._run = wandb.init(**{"config": dict(config), **arguments})

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
