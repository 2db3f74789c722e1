"""The device's programs are programs for a GPU, too: they compile for one, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")


@pytest.mark.long
def test_every_program_compiles(tmp_path):
    command = [sys.executable, "-m", "tests.kernels.compile_programs"]
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[0]) > 50
