"""Runs scenarios under TensorFlow on every rank and reports what went wrong where; see ``running``."""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import horovod.tensorflow as hvd
import tensorflow as tf

WATCHDOG = 120
"""Seconds after which a scenario that hangs ends its rank, and says where it was."""


def main(scenarios: list[Callable[[], None]]) -> None:
    """Run them all; rank 0 keeps ``sys.argv[1]`` up to date, so that a hang shows where it happened."""
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    report: dict[str, str] = {}
    for scenario in scenarios:
        problem = ""
        faulthandler.dump_traceback_later(WATCHDOG, exit=True)
        try:
            scenario()
        except BaseException:
            problem = f"rank {hvd.rank()}:\n{traceback.format_exc()}"
            sys.stderr.write(f"{scenario.__name__} failed on {problem}")  # at once: the others may hang
        problems = hvd.allgather_object(problem) if hvd.size() > 1 else [problem]
        faulthandler.cancel_dump_traceback_later()
        tf.keras.backend.clear_session()
        report[scenario.__name__] = "\n".join(filter(None, problems))
        if hvd.rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(report))
