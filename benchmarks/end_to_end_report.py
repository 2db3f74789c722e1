"""Tables and the picture of what benchmarks/end_to_end.py measured.

    python benchmarks/end_to_end_report.py build/end_to_end.json --out docs/results/end_to_end

writes the JSON file, without the single steps, a Markdown table, a picture of all of it, and one of what is won
(docs/results/end_to_end-won.png).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from hvd_compress.cli.pictures import COLOURS, pyplot

PHASES = ("compute", "wait", "decompress")
"""They add up to the step; compression happens beside them."""
ALONE = "no communication"
UNCOMPRESSED = "Horovod uncompressed"


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def rates_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """From the slowest; those that are no numbers last."""

    def bits(rate: str) -> float:
        number, unit = rate[:-4], rate[-4:]
        return float(number) * {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[unit] if unit.endswith("bit") else float("inf")

    return sorted(unique(row["rate"] for row in rows), key=bits)


def tables(content: dict[str, Any]) -> list[Table]:
    """One of a model, with milliseconds, ratios and phases."""
    result = []
    for model in unique(row["model"] for row in content["rows"]):
        table = Table(
            title=f"{model}: ms a step (against no communication); compute / wait / decompress, compress beside"
        )
        members = [row for row in content["rows"] if row["model"] == model]
        rates = rates_of(members)
        table.add_column("candidate")
        for rate in rates:
            table.add_column(rate, justify="right")
        for name in unique(row["candidate"] for row in members):
            cells = {row["rate"]: row for row in members if row["candidate"] == name}
            table.add_row(name, *(_cell(cells[rate]) if rate in cells else "-" for rate in rates))
        result.append(table)
    return result


def _cell(row: dict[str, Any]) -> str:
    phases = " / ".join(f"{row['phases_ms'][phase]:.1f}" for phase in PHASES) + f", {row['phases_ms']['compress']:.1f}"
    return f"{row['ms']:.1f} ({row['ratio']:.2f})\n{phases}"


def markdown(content: dict[str, Any]) -> str:
    """One table: a row a model and candidate, milliseconds and the ratio to no communication by rate."""
    rates = rates_of(content["rows"])
    lines = [
        "# Steps, end to end: figures",
        "",
        "Milliseconds of a step, and in brackets how many times the step without communication that is; bold: best.",
        "[How it is measured](../end-to-end.md).",
        "",
        f"| model | candidate | {' | '.join(rates)} |",
        f"|---|---|{'---|' * len(rates)}",
    ]
    for model in unique(row["model"] for row in content["rows"]):
        members = [row for row in content["rows"] if row["model"] == model]
        times = {rate: [r["ms"] for r in members if r["rate"] == rate and r["candidate"] != ALONE] for rate in rates}
        for name in unique(row["candidate"] for row in members):
            cells = []
            for rate in rates:
                row = next((r for r in members if r["rate"] == rate and r["candidate"] == name), None)
                if row is None:
                    cells.append("-")
                    continue
                text = f"{row['ms']:,.0f} ({row['ratio']:.2f})"
                cells.append(f"**{text}**" if row["ms"] == min(times[rate]) and name != ALONE else text)
            lines.append(f"| {model} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(content: dict[str, Any], path: Path) -> None:
    """Stacked phases of each step, a row a model, a column a rate; the line is the step without communication."""
    plt = pyplot()
    models, rates = unique(row["model"] for row in content["rows"]), rates_of(content["rows"])
    names = unique(row["candidate"] for row in content["rows"])
    size = (1.5 + 3.6 * len(rates), 0.6 + 0.24 * len(names) * len(models))
    figure, axes = plt.subplots(len(models), len(rates), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for line, model in zip(axes, models, strict=True):
        for axis, rate in zip(line, rates, strict=True):
            cells = {r["candidate"]: r for r in content["rows"] if (r["model"], r["rate"]) == (model, rate)}
            shown = [name for name in names if name in cells]
            if not shown:
                axis.set_axis_off()
                continue
            ratios = [cells[name]["ratio"] for name in shown]
            limit = min(max(ratios), 6.0)
            left = [0.0] * len(shown)
            for phase, colour in zip(PHASES, (COLOURS[7], COLOURS[0], COLOURS[2]), strict=True):
                parts = [cells[name]["phases_ms"][phase] / cells[ALONE]["ms"] for name in shown]
                axis.barh(shown, parts, left=left, color=colour, label=phase)
                left = [a + b for a, b in zip(left, parts, strict=True)]
            for position, (name, end) in enumerate(zip(shown, left, strict=True)):
                inside = end > limit  # there is no room behind a long bar
                at, side = (min(end, 1.25 * limit) - 0.02 * limit, "right") if inside else (end + 0.02 * limit, "left")
                text, colour = f"{cells[name]['ms']:,.0f} ms", "white" if inside else "black"
                axis.text(at, position, text, va="center", ha=side, size=7, color=colour)
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set_xlim(0, limit * 1.25)
            axis.set_title(f"{model}, {rate}", size=9)
            axis.tick_params(labelsize=7)
    axes[0, 0].invert_yaxis()  # all share it
    figure.supxlabel("step / step without communication (long bars are cut)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


SHOWN = {UNCOMPRESSED: COLOURS[7], "sidco": COLOURS[0]}
"""What the picture of what is won compares, and in which colours."""
NAMES = {"sidco": "SIDCo 0.01"}


def won(content: dict[str, Any], path: Path, rates: tuple[str, ...] = ("1gbit", "100mbit")) -> None:
    """Draw the steps of every model on two links, uncompressed and compressed, with how many times shorter one is."""
    there = {(row["model"], row["candidate"], row["rate"]) for row in content["rows"]}
    models = [
        model
        for model in unique(row["model"] for row in content["rows"])
        if {(model, name, rate) for name in SHOWN for rate in rates} <= there
    ]
    if not models:
        print(f"no picture of what is won: it needs {', '.join(SHOWN)} at {', '.join(rates)}")
        return
    figure, axes = pyplot().subplots(1, len(rates), figsize=(10, 0.8 + 0.7 * len(models)), layout="constrained")
    for axis, rate in zip(axes, rates, strict=True):
        cells = {(row["model"], row["candidate"]): row["ms"] for row in content["rows"] if row["rate"] == rate}
        for place, (name, colour) in enumerate(SHOWN.items()):
            heights = [at + 0.38 * (place - 0.5) for at in range(len(models))]
            times = [cells[model, name] for model in models]
            bars = axis.barh(heights, times, 0.36, color=colour, label=NAMES.get(name, name))
            ratios = [cells[model, UNCOMPRESSED] / time for model, time in zip(models, times, strict=True)]
            texts = [f"{time:,.0f} ms" for time in times]
            if name != UNCOMPRESSED:
                texts = [
                    f"{text}, {ratio:.1f} times faster" if ratio >= 1 else f"{text}, {1 / ratio:.1f} times slower"
                    for text, ratio in zip(texts, ratios, strict=True)
                ]
            axis.bar_label(bars, texts, padding=3, fontsize=9)
        axis.set_yticks(range(len(models)), models)
        axis.set_title(f"{rate.replace('gbit', ' Gbit/s').replace('mbit', ' Mbit/s')} between two hosts")
        axis.invert_yaxis()
        axis.set_xlabel("milliseconds a training step")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.margins(x=0.35)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=120)
    pyplot().close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="JSON file of benchmarks/end_to_end.py")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    options = parser.parse_args()
    content = json.loads(options.record.read_text())
    options.out.with_suffix(".md").write_text(markdown(content))
    picture(content, options.out.with_suffix(".png"))
    won(content, options.out.with_name(f"{options.out.name}-won.png"))
    kept = {**content, "rows": [{k: v for k, v in row.items() if k != "turns_ms"} for row in content["rows"]]}
    options.out.with_suffix(".json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
