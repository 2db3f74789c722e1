"""One table and one picture of several runs' records: what compression costs in accuracy, and what it saves.

python examples/summarize.py none.json sidco-0.01.json --picture demo.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# isort: split
import records

COLUMNS = ("accuracy", "MB / step", "smaller", "MB in all", "step", *records.PHASES)


def table(runs: Sequence[dict[str, Any]]) -> Table:
    """A row a run; sizes are compared with the first run's."""
    first = records.summary(runs[0])
    title = f"{runs[0]['model']['name']}, {runs[0]['model']['parameters']:,} parameters, {runs[0]['data']['name']}, "
    title += f"{runs[0]['ranks']} ranks"
    result = Table(title=title, caption=caption(runs))
    result.add_column("compression", overflow="fold")
    for column in COLUMNS:
        result.add_column(column, justify="right")
    for run in runs:
        row = records.summary(run)
        result.add_row(
            row["label"],
            f"{row['accuracy']:.2f} %",
            f"{row['step_mb']:.4f}",
            f"{first['step_mb'] / row['step_mb']:.0f}x" if row["step_mb"] else "-",
            f"{row['total_mb']:.1f}",
            *(f"{row[f'{phase}_ms']:.2f} ms" for phase in ("step", *records.PHASES)),
        )
    return result


def caption(runs: Sequence[dict[str, Any]]) -> str:
    """What the figures are, and what to beware of."""
    lines = [
        "Test accuracy after the last epoch. MB (10^6 bytes) that a rank hands to Horovod in the median step, and in"
    ]
    lines += ["all steps. Milliseconds of the median step and of its phases."]
    lines += {f"{run['data']['note']}: accuracies mean nothing." for run in runs if run["data"]["note"]}
    lines += [f"{run['label']} was cut off after epoch {len(run['epochs'])}." for run in runs if not run["complete"]]
    if any(
        (run["data"], run["model"], run["ranks"]) != (runs[0]["data"], runs[0]["model"], runs[0]["ranks"])
        for run in runs
    ):
        lines.append("These runs differ in data, model or ranks: compare with care.")
    return " ".join(lines)


def picture(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Training loss and test accuracy against the bytes sent."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for run in runs:
        losses = smooth(run["curve"]["loss"])
        sent = np.asarray(run["curve"]["sent_bytes"]) / 1e6
        left.plot(sent, losses, label=run["label"])
        sent = np.asarray([epoch["sent_bytes"] for epoch in run["epochs"]]) / 1e6
        right.plot(sent, [100 * epoch["test_accuracy"] for epoch in run["epochs"]], "o-", label=run["label"])
    left.set(xscale="log", yscale="log", xlabel="MB sent by a rank", ylabel="training loss")
    right.set(xscale="log", xlabel="MB sent by a rank", ylabel="test accuracy, % (a dot an epoch)")
    for axes in (left, right):
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{runs[0]['model']['name']} on {runs[0]['data']['name']}, {runs[0]['ranks']} ranks")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def smooth(values: Sequence[float], window: int = 9) -> list[float]:
    """Of each value the mean with its neighbours, up to ``window`` values."""
    half = window // 2
    return [mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; draw the picture if one was asked for."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    flags.add_argument("records", nargs="+", type=Path, metavar="RECORD", help="JSON files; the first is the baseline")
    flags.add_argument("--picture", type=Path, metavar="FILE", help="draw loss and accuracy against bytes sent")
    chosen = flags.parse_args(arguments)
    try:
        runs = [records.read(path) for path in chosen.records]
    except ValueError as error:
        flags.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(runs))
    if chosen.picture:
        picture(runs, chosen.picture)
        console.print(f"picture: {chosen.picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
