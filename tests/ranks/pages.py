"""Run Python blocks of the documentation, whatever their framework."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(
    folder: Path, rank: int, granted: Callable[[], dict[str, Any]], after: Callable[[dict[str, Any]], None]
) -> None:
    """Run the blocks of ``blocks.json``, a list of places and texts, in the folder that it lies in.

    Each begins with the names that the pages take for granted, and ``after`` ends it. A file ``RANK.ran`` says which
    have run.
    """
    ran = folder / f"{rank}.ran"
    with contextlib.chdir(folder):
        for where, text in json.loads((folder / "blocks.json").read_text()):
            names = granted()
            file = folder / f"{where.replace('/', '-')}-{rank}.py"
            file.write_text(text)  # tracebacks and TensorFlow's AutoGraph read it
            exec(compile(text, str(file), "exec"), names)
            after(names)
            with ran.open("a") as out:
                out.write(f"{where}\n")
