"""``hvd-compress bench``: what compressors and kernels cost on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from hvd_compress.advisor import candidates, device_timing, machine
from hvd_compress.advisor.benchmark import PEER, UNIT, Row, check_size, run
from hvd_compress.advisor.exchange_timing import Inputs
from hvd_compress.cli.output import Json, Plot, console, fail, print_json, print_table, progress
from hvd_compress.cli.pictures import COLOURS, check_plot, pyplot, save
from hvd_compress.cli.quantities import count

EXIT_STATUS = "Exit status: 0 done; 1 the kernels or what --plot needs are missing; 2 wrong usage."


def bench(
    compressor: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMPRESSOR]...",
            help="Time these: names of compressors, MODULE:CLASS, or YAML files.",
            show_default="all, as they come",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Time a bucket with this number of elements. This option may be repeated.",
            show_default="262144, 4000000",
        ),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Let the sparse kernels select this fraction of the elements.")] = 0.01,
    rounds: Annotated[
        int,
        typer.Option(
            min=1, help="Run this number of rounds for 10 million elements and more; smaller sizes get more rounds."
        ),
    ] = 5,
    kernels: Annotated[bool, typer.Option(help="Time single kernels, too.")] = True,
    torch: Annotated[
        bool, typer.Option(help="Let PyTorch, if it is installed, do the addition that is the unit.")
    ] = True,
    device: Annotated[
        str | None,
        typer.Option(help="Time on this CUDA device, such as cuda, with CUDA events and a cold cache."),
    ] = None,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Time compressors and kernels on this machine, on one thread, or on a GPU.

    The unit is the least that error feedback could cost: one pass that adds the gradient to the residual. The figures
    are medians over rounds in which all candidates take their turn.
    """
    check_plot(plot)
    try:
        sizes = sizes_of(size or ["262144", "4000000"])
        algorithms = candidates.for_benchmark(compressor or None)
        make_inputs: Callable[[int], Inputs] = Inputs
        if device is not None:
            make_inputs = device_timing.inputs_on(device)
            algorithms = candidates.served(algorithms, named=compressor is not None)
        if not 0 < ratio <= 1:
            raise ValueError(f"--ratio must be in (0, 1], got {ratio}")
        about = machine.describe()
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    except ImportError as error:
        fail(error, 1)
    rows: list[Row] = []
    with_torch = torch and machine.has_torch()
    for n in sizes:
        try:
            rows += run(
                n, algorithms, ratio if kernels else None, rounds, with_torch, progress(f"n = {n:,}"), make_inputs
            )
        except MemoryError as error:
            fail(f"--size {n}: not enough memory: {error}")
    if with_torch or device is not None:
        about = machine.describe()
    if device is not None:
        about["device"] = device_timing.describe(device)
    if plot:
        picture(rows, about, plot)
    if json_:
        print_json({"machine": about, "rows": rows})
        return
    print_table(table(rows))
    console().print(", ".join(f"{key}: {value}" for key, value in about.items()))
    if plot:
        console().print(f"picture: {plot}", soft_wrap=True)


def sizes_of(texts: Iterable[str]) -> list[int]:
    """Return the sizes that ``--size`` gives.

    Raises:
        ValueError: one is no number of elements, or is too large for this machine; names it.
    """
    sizes = dict.fromkeys(count("--size", text) for text in texts)
    for n in sizes:
        try:
            check_size(n, machine.memory_bytes())
        except ValueError as error:
            raise ValueError(f"--size: {error}") from error
    return list(sizes)


def table(rows: Sequence[Row], goal: Callable[[str, int], float | None] | None = None) -> Table:
    """Return ratios by candidate and size; in brackets the ``goal``, or how much less is sent than float32 has."""
    sizes = sorted({row["n"] for row in rows})
    what = "goal" if goal else "times smaller than float32"
    result = Table("candidate", title=f"time / time of residual += gradient, one thread; in brackets: {what}")
    for n in sizes:
        result.add_column(f"n = {n:,}", justify="right", no_wrap=True)
    found = {(row["name"], row["n"]): row for row in rows}
    for name in dict.fromkeys(row["name"] for row in rows):
        result.add_row(escape(name), *(_cell(found.get((name, n)), goal) for n in sizes))
    return result


def _cell(row: Row | None, goal: Callable[[str, int], float | None] | None) -> str:
    if row is None:
        return ""
    bracket = ""
    if goal is not None:
        bracket = f" ({wanted})" if (wanted := goal(row["name"], row["n"])) else ""
    elif row["sent_bytes"]:
        bracket = f" ({4 * row['n'] / row['sent_bytes']:.1f}x)"
    return f"{row['ratio']:.2f}{bracket}"


def picture(rows: Sequence[Row], about: dict[str, Any], path: Path) -> None:
    """Draw bars of the ratios, one axis a size."""
    sizes = sorted({row["n"] for row in rows})
    kinds = {row["name"]: row["kind"] for row in rows if row["kind"] != UNIT}
    names = list(kinds)
    figure, axes = pyplot().subplots(1, len(sizes), figsize=(4 + 4 * len(sizes), 1.5 + 0.3 * len(names)), sharey=True)
    for axis, n in zip(np.atleast_1d(axes), sizes, strict=True):
        ratios = [next((r["ratio"] for r in rows if r["name"] == name and r["n"] == n), np.nan) for name in names]
        bars = axis.barh(names, ratios, color=[COLOURS[7] if kinds[name] == PEER else COLOURS[0] for name in names])
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=f"n = {n:,}", xscale="log", xlabel="time / time of residual += gradient")
        axis.margins(x=0.2)
    np.atleast_1d(axes)[0].invert_yaxis()
    figure.suptitle(f"{about['processor']}, {about['isa']}, {about['threads']} thread")
    figure.tight_layout()
    save(figure, path)
