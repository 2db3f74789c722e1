"""examples/train_elastic.py, in ranks that are there already, and as a whole elastic job whose workers stay."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import programs
from tests.ranks.launching import ROOT, start_command
from tests.ranks.scenario import Job
from tests.ranks.server import Server

pytestmark = pytest.mark.multiprocess
PROGRAM = ROOT / "examples" / "train_elastic.py"
FLAGS = ["--steps", "100", "--ratio", "0.05"]


def check(output: str) -> None:
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+), 2 workers", output)]
    assert len(losses) == 2, output
    assert losses[-1] < 1, f"ten kinds that are guessed give 2.3\n{output}"


@pytest.mark.parametrize("job", [Job("torch", "mpirun", 2), Job("tensorflow", "mpirun", 2)], ids=str)
def test_it_learns(server: Server, job: Job) -> None:
    pytest.importorskip(f"horovod.{job.framework}")
    done = programs.run(server, job, PROGRAM, "--framework", job.framework, *FLAGS)
    assert done.status == 0, done.said
    check(done.said)


@pytest.mark.long
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_it_learns_in_an_elastic_job(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(f"horovod.{framework}")
    script = tmp_path / "discover_hosts.sh"
    script.write_text("#!/bin/sh\necho localhost:2\n")
    script.chmod(0o755)
    launcher = ["horovodrun", "--gloo", "-np", "2", "--min-np", "1", "--network-interface", "lo"]
    launcher += ["--host-discovery-script", str(script)]
    program = [sys.executable, str(PROGRAM), "--framework", framework, *FLAGS]
    process = start_command([*launcher, *program], output=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=500)
    finally:
        process.terminate()
    assert process.returncode == 0, output
    check(output)
