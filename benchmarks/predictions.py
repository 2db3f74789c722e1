"""What ``hvd-compress advise`` would have predicted for the cells that benchmarks/end_to_end.py measured.

    python benchmarks/predictions.py docs/results/end_to_end.json --out docs/results/predictions

Nothing is fitted to the cells: the predictions are made of what was measured beside them, the step without
communication, single collectives, and the compressors' computation on arrays. DDP is not predicted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from end_to_end_report import ALONE, UNCOMPRESSED, rates_of, unique

from hvd_compress.advisor import cluster, forecast
from hvd_compress.advisor.candidates import for_advice
from hvd_compress.advisor.costs import CollectiveCost, ExchangeCost, MeasuredCost, interpolated
from hvd_compress.advisor.model import Model, gradients_of
from hvd_compress.cli.pictures import line_styles, pyplot

FP16 = "Horovod fp16"
WITHIN = 0.15


def predict(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Every cell that can be predicted, with ``predicted_ms``, its phases, and ``error``: predicted / measured - 1."""
    result = []
    models = {entry["model"]: entry for entry in content["models"]}
    workers = content["settings"]["ranks"]
    links = {}
    for link in content["links"]:
        points = {kind: {int(n): t for n, t in line.items()} for kind, line in link["points"].items()}
        measured = {key: value for key, value in link.items() if key not in ("rate", "points")}
        links[link["rate"]] = cluster.of_measurements(points=points, **measured)
    alone = {(row["model"], row["rate"]): row for row in content["rows"] if row["candidate"] == ALONE}
    for row in content["rows"]:
        model, rate = row["model"], row["rate"]
        base = alone[model, rate]
        # What others left of the machine while nothing was communicated; a worker then had at least what it used.
        cores = max(1.0, (content["machine"]["cores"] - base.get("others", 0.0)) / workers)
        found = step(row, base["ms"] / 1000, models[model], replace(links[rate], cores=cores), workers)
        if found is not None:
            phases = {phase: 1000 * getattr(found, phase) for phase in ("compute", "wait", "decompress")}
            phases["compress"] = 1000 * (found.compress + found.beside)
            error = 1000 * found.step / row["ms"] - 1
            kept = {key: row[key] for key in ("model", "rate", "candidate", "ms", "phases_ms")}
            result.append({**kept, "predicted_ms": 1000 * found.step, "predicted_phases": phases, "error": error})
    return result


def step(
    row: dict[str, Any], alone: float, entry: dict[str, Any], link: cluster.Cluster, workers: int
) -> forecast.Forecast | None:
    """The forecast of one cell; ``alone``: seconds of its step without communication."""
    profile = entry["profile"]
    forward, backward = profile["forward"] * alone, profile["backward"] * alone
    model = Model(gradients_of(profile), forward, backward, alone - forward - backward)
    if row["candidate"] == UNCOMPRESSED:
        return forecast.uncompressed(model, link, workers, None)
    if row["candidate"] == FP16:
        known = [found for found in entry["costs"] if "casts" in found]
        elements = sum(found["casts"] for found in known)
        forth, back = (sum(found[key] for found in known) / elements for key in ("forth", "back"))
        return forecast.uncompressed(model, link, workers, lambda n: (n * forth, n * back))
    line = sorted(
        (_measured(found) for found in entry["costs"] if found.get("compressor") == row["candidate"]),
        key=lambda measured: measured.n,
    )
    if not line:
        return None
    compressor = for_advice([row["candidate"]])[row["candidate"]]
    # A record may be of a version that cut the model into buckets of other sizes.
    sizes = forecast.bucket_sizes(model.gradients, compressor)
    return forecast.compressed(model, link, workers, compressor, {n: interpolated(line, n).base for n in sizes})


def _measured(found: dict[str, Any]) -> MeasuredCost:
    rounds = tuple(CollectiveCost(**one) for one in found["base"]["rounds"])
    return MeasuredCost(found["n"], ExchangeCost(rounds, found["base"]["decode"]), found["growth"])


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Predicted and measured milliseconds of every cell, and the share of cells that are within 15 %."""
    rates = rates_of(rows)
    lines = [
        "# Predicted and measured steps",
        "",
        "Predicted / measured milliseconds of a step, and the difference. [What is behind it](../advise.md).",
        "",
        summary(rows),
        "",
        f"| model | candidate | {' | '.join(rates)} |",
        f"|---|---|{'---|' * len(rates)}",
    ]
    for model in unique(row["model"] for row in rows):
        for name in unique(row["candidate"] for row in rows):
            cells = {row["rate"]: row for row in rows if (row["model"], row["candidate"]) == (model, name)}
            texts = [
                f"{cells[r]['predicted_ms']:,.0f} / {cells[r]['ms']:,.0f} ({100 * cells[r]['error']:+.0f} %)"
                if r in cells
                else "-"
                for r in rates
            ]
            lines.append(f"| {model} | {name} | {' | '.join(texts)} |")
    return "\n".join([*lines, ""])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The share of cells within 15 %, in all and by rate."""

    def share(chosen: Sequence[dict[str, Any]]) -> str:
        near = sum(abs(row["error"]) <= WITHIN for row in chosen)
        return f"{near} of {len(chosen)} ({100 * near / len(chosen):.0f} %)"

    rates = rates_of(rows)
    by_rate = ", ".join(f"{rate}: {share([row for row in rows if row['rate'] == rate])}" for rate in rates)
    return f"Within {100 * WITHIN:.0f} %: {share(rows)}. {by_rate}."


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Predicted against measured, a dot a cell."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 6), layout="constrained")
    for rate, style in line_styles(rates_of(rows)).items():
        chosen = [row for row in rows if row["rate"] == rate]
        measured, predicted = [row["ms"] for row in chosen], [row["predicted_ms"] for row in chosen]
        axes.plot(measured, predicted, linestyle="", ms=4, alpha=0.7, label=rate, **style)
    ends = [min(row["ms"] for row in rows) / 1.3, max(row["ms"] for row in rows) * 1.3]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(
        ends, [x * (1 - WITHIN) for x in ends], [x * (1 + WITHIN) for x in ends], color="gray", alpha=0.25, label="15 %"
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="measured, ms a step",
        ylabel="predicted, ms a step",
        title=summary(rows)[:60],
    )
    axes.set_title(summary(rows).partition(". ")[0])
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="JSON file of benchmarks/end_to_end.py")
    parser.add_argument("--out", type=Path, help="path without suffix of a table and a picture")
    options = parser.parse_args()
    rows = predict(json.loads(options.record.read_text()))
    if options.out:
        options.out.with_suffix(".md").write_text(markdown(rows))
        picture(rows, options.out.with_suffix(".png"))
    print(markdown(rows))


if __name__ == "__main__":
    main()
