"""The command ``hvd-compress``. Importing this loads neither a framework nor what the command line itself needs."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the command line; without typer and rich, say how to get them.

    What is named ``MODULE:CLASS`` may be in the working directory, as for ``python -m``; what is installed comes first.
    """
    sys.path.append(str(Path.cwd()))
    try:
        from hvd_compress.cli.app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "click"):
            raise
        sys.exit(
            f"hvd-compress needs {missing}, which is not installed: pip install 'hvd-compress[cli]', "
            "or in a checkout pip install '.[cli]'"
        )
    app(prog_name="hvd-compress")
