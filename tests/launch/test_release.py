"""The source release, as pip takes it: into an empty environment, on a machine that has a compiler and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "launch" / "check_installed.py"


@pytest.mark.long
def test_the_source_release_builds_with_a_compiler_alone(tmp_path: Path) -> None:
    dist, environment, tools = tmp_path / "dist", tmp_path / "venv", tmp_path / "tools"
    build = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(dist), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (release,) = dist.glob("*.tar.gz")
    venv.create(environment, with_pip=True)
    # No cmake, ninja or make of the system: the build asks pip for its own.
    tools.mkdir()
    for name in ("g++", "gcc", "as", "ld"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HTTP", "HOME", "SSL"))}
    subprocess.run(
        [environment / "bin" / "pip", "install", "--no-cache-dir", f"{release}[cli]"],
        env={**kept, "PATH": str(tools)},
        cwd=tmp_path,
        check=True,
    )
    subprocess.run([environment / "bin" / "python", "-I", CHECK], cwd=tmp_path, env={"PATH": os.defpath}, check=True)
    command = [environment / "bin" / "hvd-compress", "list", "sidco"]
    shown = subprocess.run(command, cwd=tmp_path, env={"PATH": os.defpath}, check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("sidco (hvd_compress.algorithms.sidco.SIDCo)")
