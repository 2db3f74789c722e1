"""The demo's table, picture and closing words, from the record of benchmarks/demo.py.

python benchmarks/demo_report.py build/demo/demo.json --plot build/demo/demo.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from hvd_compress.cli.output import console, print_table
from hvd_compress.cli.pictures import line_styles, plain_numbers, pyplot, save

SCHEMA = 1
UNLIMITED = "unlimited"
UNCOMPRESSED, AUTO = "Horovod uncompressed", "Auto"
PAYS = 1.05
"""How many times faster a training must be, that we say so: less is within what a measurement repeats."""


def link(rate: str) -> str:
    """Return what people call a link.

    >>> [link(rate) for rate in ("1gbit", "100mbit", "unlimited")]
    ['1 Gbit/s', '100 Mbit/s', 'no network']
    """
    if rate == UNLIMITED:
        return "no network"
    return rate.replace("gbit", " Gbit/s").replace("mbit", " Mbit/s")


def rows(network: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for every link and compression what the table and the picture show.

    ``curve`` has the seconds of training and the test accuracy after every epoch; ``faster`` is uncompressed's time of
    the whole training, divided by this one's.
    """
    trainings = {training["label"]: training for training in network["trainings"]}
    found = []
    for cell in network["cells"]:
        training = trainings[cell["training"]]
        trial_steps, trial_seconds = cell.get("trial_steps", 0), cell.get("trial_seconds", 0.0)
        curve = []
        for epoch, accuracy in enumerate(training["accuracies"], 1):
            steps = epoch * training["steps_per_epoch"]
            tried = min(steps, trial_steps)
            seconds = tried * trial_seconds / trial_steps if trial_steps else 0.0
            curve.append((seconds + (steps - tried) * cell["ms"] / 1000, accuracy))
        label = cell["candidate"]
        if label == AUTO:
            label = f"Auto, which chose {cell['training']}"
        found.append(
            {**cell, "label": label, "curve": curve, "seconds": curve[-1][0], "accuracy": curve[-1][1]}
            | {"sent_mb": training["sent_mb"]}
        )
    plain = {row["rate"]: row["seconds"] for row in found if row["candidate"] == UNCOMPRESSED}
    return [{**row, "faster": plain[row["rate"]] / row["seconds"]} for row in found]


def rates(found: Iterable[dict[str, Any]]) -> list[str]:
    """Return the links in the order of the record."""
    return list(dict.fromkeys(row["rate"] for row in found))


def table(content: dict[str, Any], network: dict[str, Any]) -> Table:
    """Return the table of a network: a section for every link, a row for every compression."""
    found = rows(network)
    training = network["trainings"][0]
    steps = training["steps_per_epoch"] * len(training["accuracies"])
    how = "predicted" if content["predicted"] else "measured"
    result = Table(
        title=f"{network['network']}, {network['parameters']:,} parameters, {training['data']['name']}, "
        f"{content['ranks']} ranks, {steps} steps",
        caption=f"Steps over a network are {how}, between {content['ranks']} hosts; no network: as fast as this "
        "machine can. Test accuracy after the last step. MB (10^6 bytes) that a rank hands to Horovod in the median "
        "step. Median of the fastest quarter of the steps. Training: all steps, and the trial by which Auto chooses."
        + (f" {training['data']['note']}: accuracies mean nothing." if training["data"]["note"] else ""),
    )
    result.add_column("network")
    result.add_column("compression", overflow="fold", min_width=34)
    for column in ("accuracy", "MB / step", "step", "training", "against uncompressed"):
        result.add_column(column, justify="right", no_wrap=True)
    for rate in rates(found):
        first = True
        for row in found:
            if row["rate"] != rate:
                continue
            result.add_row(
                link(rate) if first else "",
                row["label"],
                f"{row['accuracy']:.1f} %",
                f"{row['sent_mb']:.3f}",
                f"{row['ms']:,.1f} ms",
                f"{row['seconds']:,.0f} s",
                speed(row["faster"]) if row["candidate"] != UNCOMPRESSED else "",
            )
            first = False
        result.add_section()
    return result


def speed(faster: float) -> str:
    """Return in words what a ratio of times is.

    >>> speed(5.91), speed(0.8), speed(1.02)
    ('5.9 times faster', '1.2 times slower', 'about as fast')
    """
    if faster >= PAYS:
        return f"{faster:.1f} times faster" if faster >= 1.95 else f"{faster:.2f} times faster"
    if faster <= 1 / PAYS:
        return f"{1 / faster:.1f} times slower"
    return "about as fast"


def closing(content: dict[str, Any], network: dict[str, Any]) -> str:
    """Return in plain words what came out for a network: where its best compression pays, and where none does."""
    found = rows(network)
    verb = "would train" if content["predicted"] else "trains"
    pays, not_there = [], []
    for rate in rates(found):
        here = {row["candidate"]: row for row in found if row["rate"] == rate}
        plain = here[UNCOMPRESSED]
        others = [row for name, row in here.items() if name not in (UNCOMPRESSED, AUTO)]
        best = max(others, key=lambda row: row["faster"])
        where = "on one machine without a network" if rate == UNLIMITED else f"at {link(rate)}"
        if best["faster"] < PAYS:
            not_there.append(where)
            continue
        lost = plain["accuracy"] - best["accuracy"]
        points = f"{abs(lost):.1f} points {'below' if lost > 0 else 'above'} uncompressed"
        if abs(lost) < 0.05:
            points = "as accurate as uncompressed"
        pays.append(f"{where} it {verb} {speed(best['faster'])} with {best['label']}, {points}")
    parts = ["; ".join(pays)] if pays else []
    if not_there:
        parts.append(f"{' and '.join(not_there)} compression does not pay")
    return f"{network['network']}: {'; '.join(parts)}."


def warning(content: dict[str, Any]) -> str:
    """Return that other programs kept the machine busy, if they did when the run began."""
    load, cores = content["machine"]["load"], content["machine"]["cores"]
    if load <= max(0.5, cores - 1):
        return ""
    return (
        f"Warning: this machine was busy when the demo began (its load was {load} on {cores} cores). Steps took longer "
        "than they do on a quiet machine, and some of the differences are chance."
    )


def picture(content: dict[str, Any], path: Path) -> None:
    """Draw accuracy against seconds of training: a row of diagrams a network, a column a link."""
    plt = pyplot()
    networks = content["networks"]
    columns = [rate for rate in rates(rows(networks[0])) if rate != UNLIMITED]
    figure, axes = plt.subplots(
        len(networks), len(columns), figsize=(11, 0.6 + 3.4 * len(networks)), layout="constrained", squeeze=False
    )
    styles = line_styles(list(dict.fromkeys(row["candidate"] for row in rows(networks[0]))))
    how = "predicted" if content["predicted"] else "measured"
    for line, network in zip(axes, networks, strict=True):
        for axis, rate in zip(line, columns, strict=True):
            for row in rows(network):
                if row["rate"] == rate:
                    seconds, accuracy = zip(*row["curve"], strict=True)
                    axis.plot(seconds, accuracy, label=row["candidate"], alpha=0.85, **styles[row["candidate"]])
            axis.set(xscale="log", xlabel=f"seconds of training, {how}", ylabel="test accuracy, %")
            axis.set_title(f"{network['network']} at {link(rate)}")
            plain_numbers(axis.xaxis)
            axis.grid(visible=True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="JSON file of benchmarks/demo.py")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture")
    options = parser.parse_args()
    content = json.loads(options.record.read_text(encoding="utf-8"))
    for network in content["networks"]:
        print_table(table(content, network))
    for network in content["networks"]:
        console().print(closing(content, network), soft_wrap=True)
    if said := warning(content):
        console().print(said, soft_wrap=True)
    if options.plot:
        picture(content, options.plot)


if __name__ == "__main__":
    main()
