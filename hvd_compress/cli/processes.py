"""Programs that ``hvd-compress doctor`` starts: found, given an environment, and ended when they take too long."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hvd_compress


def program(name: str) -> str | None:
    """Return where a program is: on PATH, or beside the interpreter, whose environment may not be activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def run(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Run a program; return its exit status and all its output.

    The status is None if it took longer than ``limit`` seconds and was ended.
    """
    with tempfile.TemporaryFile() as output:  # a pipe could be held open by what a launcher leaves behind
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            return 127, str(error)
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(limit)
        finally:
            end(process)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started: politely first, for a launcher has processes of its own to end."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def environment() -> dict[str, str]:
    """Return the environment of what is started: the same package, and the programs beside the interpreter."""
    environ = dict(os.environ)
    place = Path(hvd_compress.__file__).resolve().parents[1]
    if place.name not in ("site-packages", "dist-packages"):  # a checkout, perhaps not installed
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), environ.get("PYTHONPATH", "")]))
    environ["PATH"] = os.pathsep.join([environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return environ
