"""Accuracy and time per step against bits: joins the records of launch/study_quantizers.sh with measured step times.

    launch/study_quantizers.sh
    launch/emulate.sh --hosts 2 --rate 1gbit -- python benchmarks/end_to_end.py --models ResNet VGG-like --batch 32 \\
        --candidates study --out build/quantizers.json
    python benchmarks/bits.py build/study-quantizers/*.json --times build/quantizers.json \\
        --out docs/results/quantizers
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvd_compress.cli import records
from hvd_compress.cli.pictures import line_style, plain_numbers, pyplot, save

MODELS = {"resnet": "ResNet", "vgg": "VGG-like"}
"""The examples' names, and those of benchmarks/end_to_end.py."""

COLUMNS = (
    "compression",
    "test accuracy, %",
    "MB a step",
    "ms a step",
    "against uncompressed",
    "against no communication",
)


def join(runs: Sequence[dict[str, Any]], times: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for every model and compressor of the runs; raises ValueError if one was not timed or not finished."""
    timed = {(row["model"], row["candidate"]): row for row in times["rows"]}
    rows = []
    for run in runs:
        if not run["complete"]:
            raise ValueError(f"the run of {run['label']} is not complete")
        key = MODELS[run["model"]["name"]], run["label"]
        if key not in timed:
            raise ValueError(f"{key[1]} on {key[0]} has no step time; there are {sorted(timed)}")
        found = records.summary(run)
        step = timed[key]
        base = timed[key[0], "Horovod uncompressed"]["ms"]
        rows.append(
            {
                "model": key[0],
                "parameters": run["model"]["parameters"],
                "compression": run["label"],
                "accuracy": found["accuracy"],
                "step_mb": found["step_mb"],
                "ms": step["ms"],
                "of_uncompressed": step["ms"] / base,
                "of_no_communication": step["ratio"],
            }
        )
    rows.sort(key=lambda row: (row["model"], -row["step_mb"]))
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table a model."""
    text = []
    for model in dict.fromkeys(row["model"] for row in rows):
        members = [row for row in rows if row["model"] == model]
        text += [
            f"**{model}**, {members[0]['parameters']:,} parameters",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|---|---|---|---|---|",
        ]
        text += [
            f"| {row['compression']} | {row['accuracy']:.2f} | {row['step_mb']:.3f} | {row['ms']:.0f} | "
            f"{row['of_uncompressed']:.2f} | {row['of_no_communication']:.2f} |"
            for row in members
        ]
        text.append("")
    return "\n".join(text)


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against bytes, and time against bytes."""
    plt = pyplot()
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(2, len(models), figsize=(5.5 * len(models), 7.5), layout="constrained", squeeze=False)
    for column, model in enumerate(models):
        members = [row for row in rows if row["model"] == model]
        for above, row in zip(axes[:, column], ("accuracy", "ms"), strict=True):
            for index, member in enumerate(members):
                style = {**line_style(index), "linestyle": "", "ms": 8}
                above.plot(member["step_mb"], member[row], label=member["compression"], **style)
            above.set(xscale="log", xlabel="MB a step and rank")
            above.set_ylabel("test accuracy, %" if row == "accuracy" else "ms a step")
            plain_numbers(above.xaxis)
            above.grid(visible=True)
        axes[0, column].set_title(model)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the JSON file and the picture; print the tables."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    flags.add_argument("records", nargs="+", type=Path, help="JSON files of the examples' --record")
    flags.add_argument("--times", type=Path, required=True, help="JSON file of benchmarks/end_to_end.py")
    flags.add_argument("--out", type=Path, required=True, help="path without suffix")
    chosen = flags.parse_args(arguments)
    try:
        rows = join([records.read(path) for path in chosen.records], json.loads(chosen.times.read_text()))
    except ValueError as error:
        flags.error(str(error))
    chosen.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))
    picture(rows, chosen.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
