"""Runs scenarios (functions without arguments) on every rank and reports what went wrong where."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import horovod.torch as hvd
import torch


def main(scenarios: list[Callable[[], None]]) -> None:
    """Run them all; rank 0 keeps ``sys.argv[1]`` up to date, so that a hang shows where it happened."""
    hvd.init()
    torch.set_num_threads(1)
    report: dict[str, str] = {}
    for scenario in scenarios:
        problem = ""
        try:
            scenario()
        except BaseException:
            problem = f"rank {hvd.rank()}:\n{traceback.format_exc()}"
            sys.stderr.write(f"{scenario.__name__} failed on {problem}")  # at once: the others may hang
        problems = hvd.allgather_object(problem) if hvd.size() > 1 else [problem]
        report[scenario.__name__] = "\n".join(filter(None, problems))
        if hvd.rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(report))
