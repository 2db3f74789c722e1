"""tools/gpu_check.sh and tools/fetch_wheels.sh, as far as they go without a GPU and without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu_check

    return gpu_check


def test_what_is_missing_and_what_would_be_run(tmp_path):
    command = ["tools/gpu_check.sh", "--dry-run", "--wheels", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    version = "{}.{}".format(*sys.version_info)
    assert f"{tmp_path}: run tools/fetch_wheels.sh --python {version} where there is a network" in done.stderr
    names = [line.partition(" (up to")[0] for line in done.stdout.splitlines()]
    assert names == [
        "environment", "tools", "package", "kernels", "Horovod", "ranks", "memcheck", "racecheck", "benchmark"
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_wheels_of_another_python_are_refused(gpu_check, tmp_path):
    (tmp_path / "python-version").write_text("3.4\n")
    assert any("is for 3.4" in what for what in gpu_check.missing(tmp_path))


@pytest.mark.parametrize(("answer", "lacks"), [("exit 0", 0), ("echo 2.9 13.0; echo no driver >&2; exit 1", 1)])
def test_a_gpu_that_pytorch_cannot_use(gpu_check, tmp_path, monkeypatch, answer, lacks):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gpu_check.no_gpu() == ["a GPU that PyTorch 2.9 (CUDA 13.0) can use: no driver"] * lacks


def test_everything_that_is_installed_is_fetched():
    """And has a version in launch/requirements.txt."""
    fetch = (ROOT / "tools/fetch_wheels.sh").read_text()
    names = re.search(r"names=\((.*?)\)", fetch, re.DOTALL)[1].split()
    check = (ROOT / "tools/gpu_check.py").read_text()
    tools = re.findall(r'"([\w-]+)(?:<\d+)?"', re.search(r"TOOLS = \((.*?)\n\)", check, re.DOTALL)[1])
    assert sorted(names) == sorted(tools)
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "launch/requirements.txt").read_text(), re.MULTILINE)
    assert set(names) <= set(pinned)


def test_fetching_for_what_is_no_version_of_python():
    done = subprocess.run(
        ["tools/fetch_wheels.sh", "--python", "2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "takes a version such as 3.12, not 2" in done.stderr


def test_steps_have_limits_and_are_reported(gpu_check, tmp_path):
    check = gpu_check.Check(tmp_path, tmp_path, minutes=1)
    steps = [
        gpu_check.Step("quick", ["echo", "done"], 10),
        gpu_check.Step("wrong", ["false"], 10),
        gpu_check.Step("slow", ["sleep", "60"], 0.05),
        gpu_check.Step("gone", [str(tmp_path / "nothing")], 10),
    ]
    for step in steps:
        check.run(step)
    late = gpu_check.Step("late", ["true"], 10)
    gpu_check.Check(tmp_path, tmp_path, minutes=0).run(late)
    text = gpu_check.report({"gpu": "none"}, [*steps, late], tmp_path)
    statuses = [step["status"] for step in json.loads((tmp_path / "gpu_check.json").read_text())["steps"]]
    assert statuses[:3] == ["passed", "failed (1)", "stopped after 0 s"]
    assert statuses[3].startswith("failed (")
    assert statuses[4] == "no time left"
    assert "done" in (tmp_path / "quick.log").read_text()
    assert all(step.name in text for step in steps)


@pytest.mark.long
def test_ranks_that_share_a_device():
    """By Triton's interpreter: the CPU is the device."""
    pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")
    environment = os.environ | {"HVD_COMPRESS_KERNELS": "device", "TRITON_INTERPRET": "1"}
    command = ["mpirun", "-np", "2", sys.executable, "tools/gpu_ranks.py", "--device", "cpu", "--width", "40"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("replicas equal, weights finite") >= 4
