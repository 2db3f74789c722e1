"""launch/env.sh under the shells that there are: it finds the checkout, or says from where it can."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def sourced(shell: str, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = f'. "{name}" && echo "$HVD_COMPRESS_ROOT|${{PATH%%:*}}"'
    return subprocess.run([shell, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", ["bash", "zsh", "dash", "sh"])
def test_in_the_checkout(shell: str) -> None:
    done = sourced(shell, ROOT, "launch/env.sh" if shell in ("bash", "zsh") else "./launch/env.sh")
    assert done.stdout == f"{ROOT}|{ROOT}/.venv/bin\n", done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_from_anywhere(shell: str, tmp_path: Path) -> None:
    assert sourced(shell, tmp_path, f"{ROOT}/launch/env.sh").stdout.startswith(f"{ROOT}|")


def test_a_shell_that_cannot_know_where_it_is_says_so(tmp_path: Path) -> None:
    done = sourced("dash", tmp_path, f"{ROOT}/launch/env.sh")
    assert done.returncode == 1
    assert "launch/env.sh: this shell needs to be in the checkout's folder" in done.stderr
