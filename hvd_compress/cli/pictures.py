"""What pictures have in common: a check ahead of the work, figures without a screen, and one look."""

from __future__ import annotations

from collections.abc import Sequence
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


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's, which people with any kind of colour vision tell apart, and grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_LINES = len(COLOURS)
"""Lines in one diagram: more cannot be told apart."""


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, which draws to files and never to a screen, with the look of all our pictures."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )
    from matplotlib import pyplot

    return pyplot


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker of its own for each of up to ``MOST_LINES`` names, as arguments of ``plot``."""
    assert len(names) <= MOST_LINES, names
    return {name: line_style(number) for number, name in enumerate(names)}


def line_style(number: int) -> dict[str, Any]:
    """Return the colour and the marker of the line of that number, from 0, as arguments of ``plot``.

    They come again after ``MOST_LINES``, with hollow markers and dashed lines: for pictures of as many as somebody
    asks for.
    """
    style = {"color": COLOURS[number % MOST_LINES], "marker": MARKERS[number % MOST_LINES]}
    return style if number < MOST_LINES else {**style, "markerfacecolor": "white", "linestyle": "--"}


def name_lines(axes: Any) -> None:
    """Write the name of every line of a diagram to its right, in its colour, at the height of its last point or above
    it, so that no two names overlap. The scales of the axes are to be chosen before."""
    axes.get_xlim(), axes.get_ylim()  # (finds the limits, which the places of the lines depend on)
    shown = [line for line in axes.get_lines() if len(line.get_xdata()) and not line.get_label().startswith("_")]
    ends = axes.transData.transform([(line.get_xdata()[-1], line.get_ydata()[-1]) for line in shown])
    ends = axes.transAxes.inverted().transform(ends)[:, 1] if shown else []  # from 0 at the bottom to 1 at the top
    gap = 1.3 * 10 / (72 * axes.get_window_extent().height / axes.figure.dpi)
    height, heights = 0.0, []
    order = sorted(zip(ends, shown, strict=True), key=lambda pair: float(pair[0]))
    for end, _ in order:
        heights.append(height := max(float(end), height))
        height += gap
    beyond = max(0.0, height - gap - 1)
    for at, (_, line) in zip(heights, order, strict=True):
        place = (1.02, at - beyond)
        axes.annotate(line.get_label(), place, xycoords="axes fraction", color=line.get_color(), va="center")


def plain_numbers(axis: Any) -> None:
    """Write numbers such as 1, 2, 5, 10, 1,000 at a logarithmic axis, and none between them that would overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> None:
    """Write a figure, and free it."""
    figure.savefig(path, dpi=120)
    pyplot().close(figure)
