"""Start several ranks of a module of this directory, and end all of them whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1200

LAUNCHERS = {
    "mpirun": ["mpirun", "--oversubscribe", "-np"],
    "horovodrun": ["horovodrun", "--mpi", "-np"],
    "gloo": ["horovodrun", "--gloo", "-np"],
    "alone": [],
}


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
    prefix = LAUNCHERS[launcher]
    command = [*prefix, *([str(ranks)] if prefix else []), sys.executable, *arguments]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOROVOD_DYNAMIC_PROCESS_SETS": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environ,
        cwd=folder,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\n[killed after {timeout} s]"
    return subprocess.CompletedProcess(command, process.returncode, output)


def run_scenarios(launcher: str, ranks: int, module: str, folder: Path) -> dict[str, Any]:
    """Run a module's scenarios; returns, per scenario, what went wrong on any rank (an empty string: nothing)."""
    report = folder / f"{module}-{launcher}-{ranks}.json"
    done = launch(launcher, ranks, ["-m", f"tests.multiprocess.{module}", str(report)])
    outcome: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    outcome["output"] = done.stdout[-6000:]
    outcome["returncode"] = done.returncode
    return outcome
