"""Tables and pictures of what benchmarks/reconstruction.py found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reconstruction_errors import BUDGETS, KEPT, SEEDS, SLACK, kept_values, ranged

from hvd_compress.cli.pictures import COLOURS, line_styles, name_lines, pyplot, save


def best(rows: Sequence[dict[str, Any]], family: str, budget: int, step: int) -> dict[str, Any] | None:
    """The family's row of least error."""
    own = [row for row in rows if row["family"] == family and row["budget"] == budget]
    return min(own, key=lambda row: row["error"][step], default=None)


def markdown(result: dict[str, Any]) -> str:
    rows, steps = result["rows"], result["steps"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    budgets = " | ".join(f"1/{budget}" for budget in BUDGETS)
    text = f"""# Error of a compressed gradient, at equal bytes

`||g - decoded|| / ||g||` for gradients `g` recorded while the example's ResNet was trained uncompressed (Fashion-MNIST,
2 workers, the defaults of `examples/train_torch.py`), after {", ".join(map(str, steps))} of 2,811 steps. A gradient
is the {result["elements"]:,} elements of the parameters that are compressed, in one bucket; it is compressed as the
first gradient of a single worker, without error feedback. Budgets are fractions of float32: the bytes handed to
collectives do not exceed them by more than {SLACK - 1:.0%}. Each figure is the mean over the two workers and, where
there is chance in it, {len(SEEDS)} draws. 1.000 is the error of sending nothing.

![relative error against bytes](reconstruction.png)

Compressors without a ratio stand at the smallest budget that they fit: for a single worker, whose quantizers need no
room for a sum. `-`: nothing of this kind fits, or it fits a smaller budget already. RandKMaxNorm sends one n-th of the
elements, n a whole number, and so does not use all of every budget. FFT's payload, elements and pairs of elements: not
compressors but the yardstick for the transform, computed: the strongest elements, or pairs of neighbours, marked
(bitmap or positions) and coded (range-based floats) as `FFT` does it with frequencies.
"""
    for step in steps:
        text += f"\n## After {step} steps: the best of each\n\n| | {budgets} |\n|---|{'---|' * len(BUDGETS)}\n"
        for family in families:
            cells = []
            for budget in BUDGETS:
                row = best(rows, family, budget, step)
                own = row["name"].removeprefix(family).removeprefix(", ") if row else ""
                cells.append(
                    f"{row['error'][step]:.3f}{f' ({own})' if own and own not in family else ''}" if row else "-"
                )
            text += f"| {family} | {' | '.join(cells)} |\n"
    for step in steps:
        text += f"\n## After {step} steps: all\n\n| | {budgets} |\n|---|{'---|' * len(BUDGETS)}\n"
        for name in dict.fromkeys(row["name"] for row in rows):
            own = {row["budget"]: row for row in rows if row["name"] == name}
            cells = [f"{own[b]['error'][step]:.3f}" if b in own else "-" for b in BUDGETS]
            text += f"| {name} | {' | '.join(cells)} |\n"
    text += """
## Where the energy is

The share of the gradient's energy (sum of squares) in the strongest elements, and in the strongest frequencies (blocks
of 4,096) of the first worker's gradient; as a yardstick those of the elements in random order.

| steps | | strongest 1 % | 5 % | 10 % | 25 % |
|---|---|---|---|---|---|
"""
    for row in result["concentration"]:
        cells = " | ".join(f"{100 * share:.1f} %" for share in row["share"].values())
        text += f"| {row['step']} | {row['of']} | {cells} |\n"
    names = list(dict.fromkeys(row["format"] for row in result["formats"]))
    text += f"""
## Number formats alone

The relative error of rounding the values that are sent of the strongest {KEPT:.0%}: of elements, and of frequencies
(blocks of 4,096). In brackets: mantissa bits, for range-based floats those that were chosen. Uniform: evenly spaced up
to the largest magnitude.

| format | {" | ".join(f"{of}, {step}" for of in ("elements", "frequencies") for step in steps)} |
|---|{"---|" * 2 * len(steps)}
"""
    for name in names:
        cells = []
        for of in ("elements", "frequencies"):
            for step in steps:
                (row,) = [r for r in result["formats"] if (r["format"], r["of"], r["step"]) == (name, of, step)]
                bracket = "" if row["mantissa"] is None else f" ({row['mantissa']})"
                cells.append(f"{row['error']:.2g}{bracket}")
        text += f"| {name} | {' | '.join(cells)} |\n"
    return f"{text}\nRepeat: `python benchmarks/reconstruction.py record`, then `report`.\n"


DRAWN = (
    *("FFT", "FFT, one transform", "FFT's payload, elements"),
    *("TopK float32", "TopK range8"),
    *("QSGDMaxNorm", "QSGDMaxNormMultiScale", "RandKMaxNorm"),
)
"""The families in the picture: as many as can be told apart. The tables have all."""


def picture(result: dict[str, Any], path: Path) -> None:
    """Error against bytes, an axis for each step; of each family the best."""
    plt = pyplot()
    rows, steps = result["rows"], result["steps"]
    figure, axes = plt.subplots(1, len(steps), figsize=(4.2 * len(steps), 5), sharey=True, layout="constrained")
    for axis, step in zip(axes, steps, strict=True):
        for family, style in line_styles(DRAWN).items():
            found = [row for budget in BUDGETS if (row := best(rows, family, budget, step))]
            dense = 4 * result["elements"]
            axis.plot(
                [dense / row["sent_bytes"] for row in found],
                [row["error"][step] for row in found],
                label=family,
                **style,
            )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=f"after {step} steps", xlabel="times smaller than float32")
        axis.set_xticks(BUDGETS, map(str, BUDGETS))
        axis.minorticks_off()
        axis.set_yticks(ticks := (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10), map(str, ticks))
        axis.grid(visible=True)
    axes[0].set_ylabel("relative error (1: that of sending nothing)")
    name_lines(axes[-1])
    save(figure, path)


def picture_of_formats(gradient: np.ndarray, path: Path) -> None:
    """The positive numbers that formats can represent, for the frequencies kept of a gradient: where they are (few
    bits), and how many there are in every octave (16 bits)."""
    plt = pyplot()
    values = kept_values(gradient)["frequencies"]
    figure, (where, density) = plt.subplots(2, 1, figsize=(10, 7), sharex=True, layout="constrained")
    top = float(np.abs(values).max())
    half = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    brain = (np.arange(1, 0x7F80, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    lines = {}
    for bits in (6, 8):
        table = ranged(values, bits)[1]
        lines[f"range float, {bits} bits ({table.mantissa} mantissa)"] = table.table[table.table > 0]
        lines[f"uniform, {bits} bits"] = top / (2 ** (bits - 1) - 1) * np.arange(1, 2 ** (bits - 1))
    lines["bfloat16"] = brain
    lines["float16"] = half
    low = 2.0 ** math.floor(math.log2(np.quantile(np.abs(values), 0.001)) - 4)
    shown = [numbers[(numbers >= low) & (numbers <= 2 * top)] for numbers in lines.values()]
    colours = dict(zip(("range float", "uniform", "bfloat16", "float16"), COLOURS, strict=False))
    of_lines = [colours[name.partition(",")[0]] for name in lines]
    where.eventplot(shown, linelengths=0.7, linewidths=0.7, colors=of_lines)
    where.set_yticks(range(len(lines)), list(lines))
    for label, colour in zip(where.get_yticklabels(), of_lines, strict=True):
        label.set_color(colour)
    where.invert_yaxis()
    where.set(xscale="log", title="representable numbers, for the frequencies kept of a gradient")
    octaves = 2.0 ** np.arange(math.floor(math.log2(low)), math.ceil(math.log2(top)) + 1)
    wide = ranged(values, 16)[1]
    for name, numbers in {
        f"range float, 16 bits ({wide.mantissa} mantissa)": wide.table[wide.table > 0],
        "uniform, 16 bits": top / (2**15 - 1) * np.arange(1, 2**15),
        "bfloat16": brain,
        "float16": half,
    }.items():
        colour = colours[name.partition(",")[0]]
        heights = np.histogram(numbers, octaves)[0] + 0.1
        density.stairs(heights, octaves, color=colour, linewidth=2)
        last = np.flatnonzero(heights >= 1)[-1:]
        density.plot(octaves[last + 1], heights[last], color=colour, label=name)  # for its name
    counts = np.histogram(np.abs(values), octaves)[0]
    density.stairs(counts, octaves, fill=True, color="lightgray", zorder=0)
    (peak,) = np.flatnonzero(counts == counts.max())
    density.text(octaves[peak], 0.7, f"the {len(values):,} values", ha="center", color="0.3")
    density.set(
        xscale="log", yscale="log", ylim=(0.5, None), xlabel="magnitude", ylabel="positive numbers in an octave"
    )
    name_lines(density)
    save(figure, path)
