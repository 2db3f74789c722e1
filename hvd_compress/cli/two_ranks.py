"""Two ranks on this machine that exchange a compressed gradient, started as a training would be."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from hvd_compress.cli import processes
from hvd_compress.cli.finding import BROKEN, NOTE, OK, Finding, advice_for, last_words

FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
LAUNCHERS = {"mpirun": "mpi", "horovodrun --gloo": "gloo"}
"""How two ranks are started, and what Horovod must have been built with for it."""


def exchange(command: str, launcher: str, name: str, limit: float) -> Finding:
    """Let two ranks on this machine train one step under a framework, whose result is known.

    ``command`` is where the launcher's program is.
    """
    title = _title(launcher, name)
    tool = launcher.split()[0]
    open_mpi = tool == "mpirun" and "Open MPI" in processes.run([command, "--version"], 20)[1]
    more = ["--oversubscribe"] if open_mpi else []  # other MPIs need no such permission
    again = f"{launcher} -np 2 python -m hvd_compress.cli.smoke_test {name}"
    with tempfile.TemporaryDirectory() as folder:
        module = [sys.executable, "-m", "hvd_compress.cli.smoke_test", name, folder, str(int(limit) + 10)]
        code, output = processes.run([command, *launcher.split()[1:], "-np", "2", *more, *module], limit)
        ranks = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("rank.*.json")]
    if code is None:
        return Finding(
            title, BROKEN, f"not done after {limit:.0f} s", advice_for(output, again, "--timeout for more; ")
        )
    if any(rank["ranks"] != 2 for rank in ranks):
        advice = f"Horovod was built without this {tool}'s library, or against another one: build it again"
        return Finding(title, BROKEN, "each rank believes that it is alone", advice)
    if code or len(ranks) != 2:
        return Finding(title, BROKEN, last_words(output) or f"ended with status {code}", advice_for(output, again))
    if not all(rank["right"] for rank in ranks):
        return Finding(title, BROKEN, f"a wrong mean: {[rank['mean'] for rank in ranks]}", "please report this")
    return Finding(title, OK, "a compressed step gives the right mean")


def without(launcher: str, name: str, other: str) -> Finding:
    """Return what there is to say where a launcher is missing that Horovod was built for; ``other``: another one that
    is there, if any."""
    tool = launcher.split()[0]
    advice = "it comes with Horovod: put the folder of its scripts on PATH" if tool == "horovodrun" else "see MPI above"
    return Finding(_title(launcher, name), NOTE if other else BROKEN, f"no {tool}", advice)


def _title(launcher: str, name: str) -> str:
    return f"2 ranks, {FRAMEWORKS[name]}, {launcher}"
