"""What ``--plot`` of any command needs: a check ahead of the work, and figures without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_compress.cli.output import fail


def check_plot(path: Path | None) -> None:
    """Raise now, rather than when all has been measured, where pictures cannot be drawn."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        fail(f"--plot {path}: {path.parent} is not a folder")
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        fail(f"--plot needs matplotlib ({error}): pip install 'hvd-compress[plot]'", 1)
    if path.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        fail(f"--plot {path}: the name must end with .png, .pdf, .svg or another that matplotlib knows")


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, which draws to files and never to a screen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a figure, and free it."""
    figure.savefig(path, dpi=120)
    pyplot().close(figure)
