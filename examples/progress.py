"""Progress of a run: a bar on the terminal, or a line now and then where there is none."""

from __future__ import annotations

import time
from typing import Any, TextIO

EVERY_S = 10.0
"""Between lines, where there is no terminal."""


class Bar:
    """Shown by one rank; on the others every method does nothing.

    mpirun gives every rank a terminal of its own, and horovodrun puts a tag before every line, so the standard output
    says nothing about who is watching. The controlling terminal does: the bar is drawn there.
    """

    def __init__(self, shown: bool, title: str, steps: int) -> None:
        self._shown, self._title, self._steps = shown, title, steps
        self._done = 0
        self._printed = time.monotonic()
        self._terminal: TextIO | None = None
        self._bar: Any = None

    def __enter__(self) -> Bar:
        if self._shown:
            try:
                self._terminal = open("/dev/tty", "w", encoding="utf-8")  # noqa: PTH123
            except OSError:
                return self
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            columns = (text[0], BarColumn(20), text[1], TimeRemainingColumn())
            console = Console(file=self._terminal)
            self._bar = Progress(*columns, console=console, refresh_per_second=2, transient=True)
            self._task = self._bar.add_task(self._title, total=self._steps, note="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._terminal is not None:
            self._terminal.close()

    def advance(self, note: str) -> None:
        """One more step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=note)
        elif self._shown and time.monotonic() - self._printed >= EVERY_S:
            self._printed = time.monotonic()
            print(f"{self._title}: {self._done}/{self._steps} steps, {note}", flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.stop()
        if self._shown:
            print(f"{self._title}: {text}", flush=True)
        if self._bar is not None:
            self._bar.start()
