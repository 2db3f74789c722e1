"""examples/train_elastic.py, in an elastic job whose workers stay."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.launching import ROOT, start_command

pytestmark = [pytest.mark.multiprocess, pytest.mark.long]


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_it_learns(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(f"horovod.{framework}")
    script = tmp_path / "discover_hosts.sh"
    script.write_text("#!/bin/sh\necho localhost:2\n")
    script.chmod(0o755)
    launcher = ["horovodrun", "--gloo", "-np", "2", "--min-np", "1", "--network-interface", "lo"]
    launcher += ["--host-discovery-script", str(script)]
    program = [sys.executable, str(ROOT / "examples" / "train_elastic.py"), "--framework", framework, "--steps", "150"]
    process = start_command([*launcher, *program, "--ratio", "0.05"], output=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.terminate()
    assert process.returncode == 0, output
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+), 2 workers", output)]
    assert len(losses) == 3, output
    assert losses[-1] < 0.6 * losses[0], output
