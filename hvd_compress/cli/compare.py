"""``hvd-compress compare``: training runs side by side, from their records: accuracy, bytes and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hvd_compress.cli.output import Json, Plot, console, fail, messages, print_json, print_table
from hvd_compress.cli.pictures import check_plot, line_style, name_lines, plain_numbers, pyplot, save
from hvd_compress.cli.records import Run, collect, experiments, labels, summary
from hvd_compress.recording.record import PHASES

EXIT_STATUS = "Exit status: 0 done; 1 what --plot needs is missing; 2 wrong usage, or no record."

MUST_AGREE = ("epochs", "batch_size", "lr", "threads")
"""Flags of a training that change accuracy or time by themselves. (DGC has the momentum that the optimizer has not.)"""
COLUMNS = ("accuracy", "MB / step", "smaller", "MB in all", "step", *PHASES)


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Compare these records (of hvd_compress.Recorder, or of the examples' --record) or folders of them.",
        ),
    ],
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Compare training runs: accuracy, bytes and time, from their records.

    Sizes are compared with the first run of each experiment (same data, model and ranks): of files the first given, of
    a folder the one that sends most. The picture has accuracy against bytes and against time.
    """
    check_plot(plot)
    try:
        runs, others = collect(paths)
    except ValueError as error:
        fail(error)
    if plot:
        picture(runs, plot)
    if json_:
        print_json(report(runs))
        return
    if others:
        messages().print(f"left out, not records: {escape(', '.join(others))}", soft_wrap=True)
    for group in experiments(runs):
        print_table(table(group))
    if plot:
        console().print(f"picture: {plot}", soft_wrap=True)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one experiment's figures (``records.summary``), and ``smaller``: how many times less than the first run it
    sends in a step (None: it sends nothing)."""
    result = [{**summary(run), "label": label} for run, label in zip(runs, labels(runs), strict=True)]
    for row in result:
        row["smaller"] = result[0]["step_mb"] / row["step_mb"] if row["step_mb"] else None
    return result


def report(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what ``--json`` prints: for each experiment what it was, its rows, and what to beware of."""
    return [
        {
            "data": group[0]["data"],
            "model": group[0]["model"],
            "ranks": group[0]["ranks"],
            "rows": rows(group),
            "warnings": warnings(group),
        }
        for group in experiments(runs)
    ]


def warnings(runs: Sequence[Run]) -> list[str]:
    """Return what makes the figures of one experiment say less than they seem to."""
    note = runs[0]["data"].get("note")
    flags = [run.get("flags", {}) for run in runs]
    differ = [key for key in MUST_AGREE if any(other.get(key) != flags[0].get(key) for other in flags)]
    cut = [(label, run) for label, run in zip(labels(runs), runs, strict=True) if not run["complete"]]
    return [
        *([f"{note}: accuracies mean nothing."] if note else []),
        *([f"The runs differ in {' and '.join(differ)}."] if differ else []),
        *(f"{label} was cut off after epoch {len(run['epochs'])}." for label, run in cut),
    ]


def title(runs: Sequence[Run]) -> str:
    """Return what one experiment was about."""
    model, data = runs[0]["model"], runs[0]["data"]
    return f"{model['name']}, {model['parameters']:,} parameters, {data['name']}, {runs[0]['ranks']} ranks"


def table(runs: Sequence[Run]) -> Table:
    """Return a row for each run of one experiment; sizes are compared with the first one's."""
    caption = (
        "Test accuracy after the last epoch. MB (10^6 bytes) that a rank hands to Horovod in the median step, and in "
        "all steps. Milliseconds of the median step and of its phases."
    )
    result = Table(title=title(runs), caption=" ".join([caption, *warnings(runs)]))
    result.add_column("compression", overflow="fold")
    for column in COLUMNS:
        result.add_column(column, justify="right", no_wrap=True)
    for row in rows(runs):
        result.add_row(
            row["label"],
            "-" if row["accuracy"] is None else f"{row['accuracy']:.2f} %",
            f"{row['step_mb']:.4f}",
            f"{row['smaller']:.0f}x" if row["smaller"] else "-",
            f"{row['total_mb']:.1f}",
            *(f"{row[f'{phase}_ms']:.2f} ms" for phase in ("step", *PHASES)),
        )
    return result


def picture(runs: Sequence[Run], path: Path) -> None:
    """Draw training loss and test accuracy against the bytes sent, and accuracy against time; a row an experiment."""
    groups = experiments(runs)
    figure = pyplot().figure(figsize=(15, 4.5 * len(groups)), layout="constrained")
    for group, part in zip(groups, figure.subfigures(len(groups), 1, squeeze=False)[:, 0], strict=True):
        loss, by_bytes, by_time = part.subplots(1, 3)
        for number, (run, label) in enumerate(zip(group, labels(group), strict=True)):
            style = line_style(number)
            accuracies = [100 * epoch.get("test_accuracy", math.nan) for epoch in run["epochs"]]
            seconds = list(accumulate(epoch["seconds"] for epoch in run["epochs"]))
            losses = smooth(run["curve"]["loss"])
            loss.plot(megabytes(run["curve"]["sent_bytes"]), losses, label=label, **{**style, "marker": ""})
            by_bytes.plot(megabytes(e["sent_bytes"] for e in run["epochs"]), accuracies, label=label, **style)
            by_time.plot(seconds, accuracies, label=label, **style)
        scale = "log" if any(run["epochs"][-1]["sent_bytes"] for run in group) else "linear"
        if any(run["curve"]["loss"] for run in group):  # (there are no logarithms of nothing)
            loss.set(xscale=scale, yscale="log")
        loss.set(xlabel="MB sent by a rank", ylabel="training loss")
        by_bytes.set(xscale=scale, xlabel="MB sent by a rank", ylabel="test accuracy, % (a marker an epoch)")
        by_time.set(xlabel="seconds of training", ylabel="test accuracy, % (a marker an epoch)")
        for axis in (loss.xaxis, loss.yaxis, by_bytes.xaxis):
            if axis.get_scale() == "log":
                plain_numbers(axis)
        for axes in (loss, by_bytes, by_time):
            axes.grid(visible=True, which="major")
        name_lines(by_time)
        part.suptitle(title(group))
    save(figure, path)


def megabytes(sizes: Any) -> list[float]:
    """Return bytes in units of 10^6."""
    return [size / 1e6 for size in sizes]


def smooth(values: Sequence[float], window: int = 9) -> list[float]:
    """Return of each value the mean with its neighbours, up to ``window`` values."""
    half = window // 2
    return [mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
