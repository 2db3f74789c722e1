"""Mean accuracies over seeds, from the records of launch/study.sh: a JSON file and a table in Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hvd_compress.cli import records


def study(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Group complete runs by label; the seeds, accuracies (%), and bytes of each group, the uncompressed one first.

    Raises ValueError: the runs are not of one experiment, or lack the same seeds.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if not run["complete"]:
            raise ValueError(f"a run of {run['label']} is not complete")
        groups.setdefault(run["label"], []).append(run)
    ordered = sorted(groups.items(), key=lambda item: -records.summary(item[1][0])["step_mb"])
    first = ordered[0][1][0]
    common = {key: first[key] for key in ("data", "model", "ranks", "machine", "versions")}
    common["flags"] = {key: first["flags"][key] for key in ("epochs", "batch_size", "lr", "momentum", "weight_decay")}
    rows = []
    for label, members in ordered:
        members.sort(key=lambda run: run["flags"]["seed"])
        for run in members:
            if any(run[key] != common[key] for key in ("data", "model", "ranks")):
                raise ValueError(f"the runs of {label} and {first['label']} differ in data, model or ranks")
        summaries = [records.summary(run) for run in members]
        rows.append(
            {
                "label": label,
                "compression": members[0]["compression"],
                "seeds": [run["flags"]["seed"] for run in members],
                "accuracy": [round(summary["accuracy"], 2) for summary in summaries],
                "mean_accuracy": round(mean(summary["accuracy"] for summary in summaries), 3),
                "step_mb": round(mean(summary["step_mb"] for summary in summaries), 5),
                "total_mb": round(mean(summary["total_mb"] for summary in summaries), 2),
            }
        )
    if any(row["seeds"] != rows[0]["seeds"] for row in rows):
        raise ValueError(f"not the same seeds everywhere: {[(row['label'], row['seeds']) for row in rows]}")
    return {**common, "rows": rows}


def markdown(result: dict[str, Any], note: str) -> str:
    """The table, with what it takes to repeat it."""
    rows = result["rows"]
    flags, versions = result["flags"], result["versions"]
    seeds = " ".join(map(str, rows[0]["seeds"]))
    model, data = result["model"], result["data"]
    images, parameters = f"{data['train_images']:,}", f"{model['parameters']:,}"
    text = f"""# {data["name"]}: accuracy with and without compression

{model["name"]} with {parameters} parameters, {result["ranks"]} ranks, {flags["epochs"]} epochs over {images} images,
batch {flags["batch_size"]} a rank, SGD with learning rate {flags["lr"]}, momentum {flags["momentum"]}, weight decay
{flags["weight_decay"]}; the same for all rows.

| compression | test accuracy, % (seeds {seeds}) | mean | difference | MB a step | times smaller | MB in all |
|---|---|---|---|---|---|---|
"""
    for row in rows:
        cells = [
            row["label"],
            ", ".join(f"{value:.2f}" for value in row["accuracy"]),
            f"{row['mean_accuracy']:.2f}",
            f"{row['mean_accuracy'] - rows[0]['mean_accuracy']:+.2f}",
            f"{row['step_mb']:.4f}",
            f"{rows[0]['step_mb'] / row['step_mb']:.0f}x",
            f"{row['total_mb']:.1f}",
        ]
        text += f"| {' | '.join(cells)} |\n"
    return f"""{text}
MB (10^6 bytes) are what one rank hands to Horovod, in the median step and in all steps, warm-up included; with two
ranks that is also what it sends. One model on one data set: an example, not a promise.
{note}

Repeat: `launch/study.sh {seeds}` (Python {versions["python"]}, PyTorch {versions["torch"]}, Horovod
{versions["horovod"]}; {result["machine"]["processor"]}).
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write OUT.json and OUT.md."""
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    flags.add_argument("--out", type=Path, required=True, help="path of the results without .json and .md")
    flags.add_argument("--note", default="", help="a remark for the text")
    chosen = flags.parse_args(arguments)
    try:
        result = study(map(records.read, chosen.records))
    except ValueError as error:
        flags.error(str(error))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result, chosen.note)
    chosen.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
