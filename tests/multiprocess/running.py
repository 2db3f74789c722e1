"""Runs scenarios (functions without arguments) on every rank and reports what went wrong where, for any framework."""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

WATCHDOG = 600
"""Seconds after which a scenario that hangs ends its rank, and says where it was. (Over Gloo, with two ranks on
two cores, a scenario of a second was seen to take minutes: Horovod's own ``synchronize`` leaves no core.)"""


def run(
    scenarios: list[Callable[[], None]],
    rank: int,
    gather: Callable[[str], list[str]],
    clear: Callable[[], None] = lambda: None,
) -> None:
    """Run them all, ``clear`` after each; rank 0 keeps ``sys.argv[1]`` up to date, so that a hang shows where it
    happened."""
    report: dict[str, str] = {}
    for scenario in scenarios:
        problem = ""
        faulthandler.dump_traceback_later(WATCHDOG, exit=True)
        try:
            scenario()
        except BaseException:
            problem = f"rank {rank}:\n{traceback.format_exc()}"
            sys.stderr.write(f"{scenario.__name__} failed on {problem}")  # at once: the others may hang
        problems = gather(problem)
        faulthandler.cancel_dump_traceback_later()
        clear()
        report[scenario.__name__] = "\n".join(filter(None, problems))
        if rank == 0:
            Path(sys.argv[1]).write_text(json.dumps(report))
