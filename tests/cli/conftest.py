import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hvd_compress.cli.app import app

HIDER = """
import os, sys

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hider())
"""


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.words = " ".join(out.split())

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run ``hvd-compress ARGUMENTS`` in this process, with a wide terminal."""
    monkeypatch.setenv("COLUMNS", "150")

    def run(*arguments: str | Path) -> Ran:
        result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="hvd-compress")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From processes started from then on: these modules are not installed."""

    def hide(*modules: str) -> None:
        (tmp_path / "hider").mkdir()
        (tmp_path / "hider" / "sitecustomize.py").write_text(HIDER)
        path = os.pathsep.join(filter(None, [str(tmp_path / "hider"), os.environ.get("PYTHONPATH")]))
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv("HIDDEN", " ".join(modules))

    return hide
