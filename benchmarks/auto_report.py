"""How ``Auto`` did beside fixed choices, and whether ``hvd-compress advise`` would have said the same.

    python benchmarks/auto_report.py build/matrix-*.json --out docs/results/auto

Files are those that benchmarks/end_to_end.py wrote with ``--auto``. A cell is a model on a number of hosts, ranks a
host and a rate. Auto is compared with the fastest of its own candidates, which were timed in the same rounds. What
``advise`` says is made, by its own rule, of what was measured beside the steps (see benchmarks/predictions.py).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from end_to_end_report import ALONE, UNCOMPRESSED, unique
from predictions import predict

from hvd_compress.advisor.advice import recommended

AUTO = "Auto"
OWN = {"Dense": UNCOMPRESSED, "Half": "half", "QSGDMaxNorm": "qsgd-maxnorm", "SIDCo": "sidco"}
"""Auto's default candidates, from the mildest, and what the figures call them."""
WITHIN = 0.02
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
        best = min(names, key=lambda name: rows[name]["ms"])
        auto = rows[AUTO]
        choice = OWN[auto["auto"]["choice"].partition("(")[0]]
        found.append(
            {
                "hosts": hosts,
                "ranks": ranks // hosts,
                "rate": rate,
                "model": model,
                "rows": rows,
                "best": best,
                "slower": auto["ms"] / rows[best]["ms"] - 1,
                "choice": choice,
                "auto_cost": math.log(auto["ms"] / rows[choice]["ms"]),
                "advised": advised,
                "advised_slower": rows[advised]["ms"] / rows[best]["ms"] - 1,
            }
        )
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Auto beside fixed choices: figures",
        "",
        "Milliseconds of a step (medians; the slowest rank's). *Slower*: Auto against the fastest of its own",
        "candidates, which is named. [How it is measured](../many-workers.md).",
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
            f"| {place} | {' | '.join(times)} | {own} | {100 * cell['slower']:+.1f} % | {cell['choice']} | "
            f"{cell['advised']} |"
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
    near = sum(cell["slower"] <= WITHIN for cell in found)
    fastest = sum(cell["choice"] == cell["best"] for cell in found)
    same = sum(cell["choice"] == cell["advised"] for cell in found)
    good = sum(cell["advised_slower"] <= WITHIN for cell in found)
    no_worse = sum(_advised_to_chosen(cell) <= 1 + WITHIN for cell in found)
    text = (
        f"In {len(found)} cells Auto chose the fastest of its own candidates {fastest} times, was at most "
        f"{100 * WITHIN:.0f} % slower than it {near} times, and chose what `advise` says {same} times "
        f"({100 * same / len(found):.0f} %). What `advise` says was at most {100 * WITHIN:.0f} % slower than the "
        f"fastest {good} times ({100 * good / len(found):.0f} %), and than what Auto chose {no_worse} times "
        f"({100 * no_worse / len(found):.0f} %)."
    )
    if len(alike := twins(found)) > 1:
        text += (
            "\n\nWhat the times can tell: Auto on a candidate is that candidate, and with one rank a host `two-level` "
            f"is `sidco`. Auto's step is to that of what it chose as {_ratio([cell['auto_cost'] for cell in found])}; "
            f"`two-level`'s to that of `sidco` as {_ratio(alike)}. The standard deviation between two such twins in "
            f"one cell is {100 * stdev(alike):.0f} %: a cell does not tell a difference of {100 * WITHIN:.0f} %."
        )
    return text


def _ratio(logarithms: Sequence[float]) -> str:
    """The mean of logarithms of ratios as a ratio, with its standard error."""
    error = stdev(logarithms) / len(logarithms) ** 0.5
    return f"{math.exp(mean(logarithms)):.3f} ± {error:.3f} to 1 in the mean of {len(logarithms)} cells"


def twins(found: Sequence[dict[str, Any]]) -> list[float]:
    """Logarithms of the ratio of two candidates that are one and the same."""
    return [
        math.log(cell["rows"]["two-level"]["ms"] / cell["rows"]["sidco"]["ms"])
        for cell in found
        if cell["ranks"] == 1 and {"two-level", "sidco"} <= cell["rows"].keys()
    ]


def disagreements(found: Sequence[dict[str, Any]]) -> list[str]:
    """The cells in which Auto chose something else than `advise` says, with what either took."""
    apart = [cell for cell in found if cell["choice"] != cell["advised"]]
    text = "Milliseconds as above; *difference*: the advised against the chosen."
    if len(alike := twins(found)) > 1:
        near = sum(abs(math.log(_advised_to_chosen(cell))) < stdev(alike) for cell in apart)
        text += f" In {near} of these {len(apart)} cells it is less than the standard deviation between twins."
    lines = [
        "## Where `advise` says something else",
        "",
        text,
        "",
        "| hosts x ranks | rate | model | Auto chose | advised | difference | the fastest |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in apart:
        chosen, advised = (cell["rows"][cell[key]]["ms"] for key in ("choice", "advised"))
        place = f"{cell['hosts']} x {cell['ranks']} | {cell['rate']} | {cell['model']}"
        lines.append(
            f"| {place} | {cell['choice']}, {chosen:,.0f} | {cell['advised']}, {advised:,.0f} | "
            f"{100 * (_advised_to_chosen(cell) - 1):+.0f} % | {cell['best']} |"
        )
    return lines


def _advised_to_chosen(cell: dict[str, Any]) -> float:
    return float(cell["rows"][cell["advised"]]["ms"] / cell["rows"][cell["choice"]]["ms"])


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    found = [cell for path in paths for cell in cells(json.loads(path.read_text()))]
    return sorted(found, key=lambda cell: (cell["hosts"], cell["ranks"], cell["model"]))


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
