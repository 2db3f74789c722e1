"""Start a program on several ranks, and end all of them whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1200

LAUNCHERS = {
    "mpirun": ["mpirun", "--oversubscribe", "-np"],
    "horovodrun": ["horovodrun", "--mpi", "-np"],
    "gloo": ["horovodrun", "--gloo", "-np"],
    "nodes": ["horovodrun", "--gloo", "-np"],
    "alone": [],
}
"""``nodes``: as ``gloo``, but half of the ranks are on another host, as far as Horovod knows."""


def start(
    launcher: str, ranks: int, arguments: list[str], *, output: int | IO[str], folder: Path = ROOT, **environment: str
) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS`` on ``ranks`` ranks, in a process group of its own."""
    prefix = [*LAUNCHERS[launcher], str(ranks)] if LAUNCHERS[launcher] else []
    if launcher == "nodes":
        prefix += ["-H", f"localhost:{-(-ranks // 2)},127.0.0.1:{ranks // 2}"]
    return start_command([*prefix, sys.executable, *arguments], output=output, folder=folder, **environment)


def start_command(
    command: list[str], *, output: int | IO[str], folder: Path = ROOT, **environment: str
) -> subprocess.Popen[str]:
    """Start a command as the ranks' launchers are started, in a process group of its own."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOROVOD_DYNAMIC_PROCESS_SETS": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environ,
        cwd=folder,
        start_new_session=True,
    )


def launch(
    launcher: str,
    ranks: int,
    arguments: list[str],
    *,
    timeout: float = TIMEOUT,
    folder: Path = ROOT,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` on ``ranks`` ranks; kill the whole process group after ``timeout`` seconds."""
    process = start(launcher, ranks, arguments, output=subprocess.PIPE, folder=folder, **environment)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\n[killed after {timeout} s]"
    return subprocess.CompletedProcess(process.args, process.returncode, output)
