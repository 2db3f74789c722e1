"""How ``Auto`` did beside fixed choices, and whether ``hvd-compress advise`` would have said the same.

    python benchmarks/auto_report.py build/matrix-*.json --out docs/results/auto

Files are those that benchmarks/end_to_end.py wrote with ``--auto``. A cell is a model on a number of hosts, ranks a
host and a rate. Auto is compared with the fastest of its own candidates, which were timed in the same rounds: by the
median step of either in every round, which what changes from round to round does not touch. Which one is the fastest is
found in one half of the rounds for the comparison in the other: whatever looks fastest in some rounds was favoured by
chance in these. What ``advise`` says is made, by its own rule, of what was measured beside the steps (see
benchmarks/predictions.py).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from end_to_end_report import ALONE, UNCOMPRESSED, rates_of, unique
from predictions import predict

from hvd_compress.advisor.advice import recommended

AUTO = "Auto"
OWN = {"Dense": UNCOMPRESSED, "Half": "half", "QSGDMaxNorm": "qsgd-maxnorm", "SIDCo": "sidco"}
"""Auto's default candidates, from the mildest, and what the figures call them."""
WITHIN = 0.02
SURE = 2.0
"""Standard errors from which a difference is one."""
SHOWN = (UNCOMPRESSED, "sidco", "sidco-reduce-scatter", "two-level", "shared-topk", AUTO)


def cells(content: dict[str, Any]) -> list[dict[str, Any]]:
    """One for every model and rate."""
    ranks, hosts = content["settings"]["ranks"], content["machine"].get("hosts", 1)
    predicted = {(r["model"], r["rate"], r["candidate"]): r["predicted_ms"] for r in predict(content)}
    found = []
    for model, rate in unique((row["model"], row["rate"]) for row in content["rows"]):
        rows = {r["candidate"]: r for r in content["rows"] if (r["model"], r["rate"]) == (model, rate)}
        if AUTO not in rows:
            continue
        names = [name for name in OWN.values() if name in rows]
        advised = recommended({name: predicted[model, rate, name] for name in names})
        choice = OWN[rows[AUTO]["auto"]["choice"].partition("(")[0]]
        found.append(
            {
                "hosts": hosts,
                "ranks": ranks // hosts,
                "rate": rate,
                "model": model,
                "rows": rows,
                "best": fastest(rows, names),
                "slower": slower(rows, names),
                "choice": choice,
                "auto_cost": difference(rows, AUTO, choice),
                "advised": advised,
                "advised_to_chosen": difference(rows, advised, choice),
            }
        )
    return found


class Difference(NamedTuple):
    """A median of logarithms of ratios, and its standard error, which single ones that are far off hardly change."""

    median: float
    error: float

    @classmethod
    def of(cls, logarithms: Iterable[float]) -> Difference:
        values = list(logarithms)
        middle = median(values)
        if len(values) < 2:
            return cls(middle, math.inf)
        return cls(middle, 1.253 * 1.483 * median(abs(value - middle) for value in values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        """In percent."""
        if not self.error and not self.median:
            return "0"
        percent = f"{100 * math.expm1(self.median):+.1f}"
        return percent if self.error == math.inf else f"{percent} ± {100 * self.error:.1f}"


def together(differences: Iterable[Difference]) -> Difference:
    """The mean of differences, weighted by how well they are known."""
    weights = [(found.median, found.error**-2) for found in differences if 0 < found.error < math.inf]
    total = sum(weight for _, weight in weights)
    return Difference(sum(value * weight for value, weight in weights) / total, total**-0.5)


def apart(rows: dict[str, Any], one: str, other: str) -> dict[int, float]:
    """By how much one candidate is slower than another, as a logarithm, in every round in which both took part."""
    times = [{n: median(turn) for n, turn in rows[name]["turns_ms"].items() if turn} for name in (one, other)]
    return {int(n): math.log(times[0][n] / times[1][n]) for n in times[0] if n in times[1]}


def difference(rows: dict[str, Any], one: str, other: str) -> Difference:
    """By how much one candidate is slower than another, in rounds of both; if there are none, by all that is known."""
    return Difference.of(apart(rows, one, other).values() or [math.log(rows[one]["ms"] / rows[other]["ms"])])


def fastest(rows: dict[str, Any], names: Sequence[str], half: int | None = None) -> str:
    """The fastest of these candidates beside Auto: in all rounds, or in those with odd or even numbers."""

    def seconds(name: str) -> float:
        found = [value for n, value in apart(rows, name, AUTO).items() if half is None or n % 2 == half]
        return median(found) if found else math.inf

    return min(names, key=seconds)


def slower(rows: dict[str, Any], names: Sequence[str]) -> Difference:
    """Auto against the fastest of these candidates, which the other half of the rounds tells."""
    best = [fastest(rows, names, half) for half in (1, 0)]
    return Difference.of(
        value for half in (0, 1) for n, value in apart(rows, AUTO, best[half]).items() if n % 2 == half
    )


def markdown(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Auto beside fixed choices: figures",
        "",
        "Milliseconds of a step (medians; the slowest rank's). *Slower*: by how many percent Auto is slower than the",
        "fastest of its own candidates, which is named, with the standard error; both from the same rounds.",
        "[How it is measured](../many-workers.md).",
        "",
        summary(found),
        "",
        f"| hosts x ranks | rate | model | {' | '.join(SHOWN)} | fastest of its own | slower | chosen | advised |",
        f"|---|---|---|{'---|' * len(SHOWN)}---|---|---|---|",
    ]
    for cell in found:
        times = [f"{cell['rows'][name]['ms']:,.0f}" if name in cell["rows"] else "-" for name in SHOWN]
        place = f"{cell['hosts']} x {cell['ranks']} | {cell['rate']} | {cell['model']}"
        own = f"{cell['best']}, {cell['rows'][cell['best']]['ms']:,.0f}"
        lines.append(
            f"| {place} | {' | '.join(times)} | {own} | {cell['slower']} | {cell['choice']} | {cell['advised']} |"
        )
    lines += ["", *disagreements(found), "", "## Bytes", "", *bytes_table(found), ""]
    return "\n".join(lines)


def bytes_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """What a worker hands to collectives in a step, by their scope: exact, and the same at every rate."""
    lines = [
        "Megabytes that a worker hands over in a step: to all, within its node, and to its peers on other nodes.",
        "",
        "| hosts x ranks | model | candidate | all | node | peers |",
        "|---|---|---|---|---|---|",
    ]
    seen = set()
    for cell in found:
        for name in SHOWN[1:-1]:
            key = cell["hosts"], cell["ranks"], cell["model"], name
            row = cell["rows"].get(name)
            if row is None or key in seen:
                continue
            seen.add(key)
            sent = " | ".join(f"{row['sent_mb_by_scope'][scope]:.3f}" for scope in ("all", "node", "peers"))
            lines.append(f"| {key[0]} x {key[1]} | {key[2]} | {name} | {sent} |")
    return lines


def summary(found: Sequence[dict[str, Any]]) -> str:
    count = len(found)
    limit = math.log1p(WITHIN)
    near = sum(cell["slower"].median <= limit for cell in found)
    surely = sum(cell["slower"].median + SURE * cell["slower"].error <= limit for cell in found)
    surely_not = sum(cell["slower"].median - SURE * cell["slower"].error > limit for cell in found)
    best = sum(cell["choice"] == cell["best"] for cell in found)
    same = sum(cell["choice"] == cell["advised"] for cell in found)
    no_worse = sum(cell["choice"] == cell["advised"] or cell["advised_to_chosen"].median <= limit for cell in found)
    text = (
        f"In {count} cells Auto chose the fastest of its own candidates {best} times, and what `advise` says {same} "
        f"times ({100 * same / count:.0f} %). It was at most {100 * WITHIN:.0f} % slower than the fastest {near} "
        f"times; by {SURE:.0f} standard errors, it was in {surely} cells, it was not in {surely_not}, and the others "
        f"do not tell. What `advise` says was at most {100 * WITHIN:.0f} % slower than what Auto chose {no_worse} "
        f"times ({100 * no_worse / count:.0f} %)."
    )
    if count > 1:
        slower, cost = (together(cell[key] for cell in found) for key in ("slower", "auto_cost"))
        text += (
            f"\n\nAll cells together, each weighted by its error: Auto is {slower} % slower than the fastest. On a "
            f"candidate it is that candidate: its steps took {cost} % more."
        )
    return text


def disagreements(found: Sequence[dict[str, Any]]) -> list[str]:
    """The cells in which Auto chose something else than `advise` says, with what either took."""
    lines = [
        "## Where `advise` says something else",
        "",
        "Milliseconds as above; *difference*: by how many percent the advised is slower than the chosen, in the same",
        "rounds.",
        "",
        "| hosts x ranks | rate | model | Auto chose | advised | difference | the fastest |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in found:
        if cell["choice"] == cell["advised"]:
            continue
        chosen, advised = (cell["rows"][cell[key]]["ms"] for key in ("choice", "advised"))
        place = f"{cell['hosts']} x {cell['ranks']} | {cell['rate']} | {cell['model']}"
        lines.append(
            f"| {place} | {cell['choice']}, {chosen:,.0f} | {cell['advised']}, {advised:,.0f} | "
            f"{cell['advised_to_chosen']} | {cell['best']} |"
        )
    return lines


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    found = [cell for path in paths for cell in cells(json.loads(path.read_text()))]
    rates = rates_of(found)
    return sorted(found, key=lambda cell: (cell["hosts"], cell["ranks"], cell["model"], -rates.index(cell["rate"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="JSON files of benchmarks/end_to_end.py")
    parser.add_argument("--out", type=Path, help="path without suffix of a table")
    options = parser.parse_args()
    found = read(options.records)
    if not found:
        raise SystemExit(f"no cell of these files has {AUTO} and {ALONE}: run end_to_end.py with --auto")
    if options.out:
        options.out.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
