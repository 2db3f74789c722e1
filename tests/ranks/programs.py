"""Programs for several ranks, run in ranks that are there already, for starting and importing takes the longest."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.ranks.scenario import Job
from tests.ranks.server import Server


class Done(NamedTuple):
    """How a program ended: the exit status (the largest of all ranks), and what the ranks said."""

    status: int
    said: str


def run(server: Server, job: Job, program: Path, *arguments: str, folder: Path | None = None) -> Done:
    """Run ``python PROGRAM ARGUMENTS`` on the ranks of a job, in ``folder``."""
    with TemporaryDirectory() as reports:
        server.call(job, run_on_this_rank, str(program), arguments, str(folder or Path.cwd()), reports)
        found = [json.loads(path.read_text()) for path in sorted(Path(reports).iterdir())]
    assert len(found) == job.ranks
    return Done(max(one["status"] for one in found), "".join(one["said"] for one in found))


def run_on_this_rank(program: str, arguments: Sequence[str], folder: str, reports: str) -> None:
    """Do as ``python PROGRAM ARGUMENTS`` does; write what came of it to a file in ``reports``."""
    said = io.StringIO()
    before = sys.argv, sys.path[:], Path.cwd()
    sys.argv = [program, *arguments]
    sys.path.insert(0, str(Path(program).parent))
    os.chdir(folder)
    status = 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_path(program, run_name="__main__")
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        status = 1
        traceback.print_exc(file=said)
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.chdir(before[2])
    (Path(reports) / str(os.getpid())).write_text(json.dumps({"status": status, "said": said.getvalue()}))
