"""What compression costs on one thread, in units of the cheapest thing it could cost.

    python benchmarks/kernels.py --out build/kernels          # writes kernels.json and kernels.png, prints a table

The unit is one pass of error feedback, ``residual.add_(gradient)`` in torch: two arrays read, one written. Every round
runs all candidates once, in random order, in one process; a figure is the median over the rounds of a candidate's time
divided by the unit's time in the same round. Before every call residual and gradient are restored, and the other
arrays that it uses are read, untimed: all of a candidate's arrays are as warm as the unit's.

Compressors are timed from the gradient to the finished payload, error feedback included. The peer is torch.topk with
error feedback: under the default malloc, and under one that keeps its memory (``MALLOC_MMAP_MAX_=0``,
``MALLOC_TRIM_THRESHOLD_=1000000000``), without which page faults are most of its cost at large sizes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

import hvd_compress
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.exchange import Bucket
from hvd_compress.kernels import get, host, workspace
from hvd_compress.memory import Residual

SIZES = (262_144, 4_000_000, 25_600_000)
RATIOS = (0.01, 0.001)
WORKERS = 4
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
GOALS = {
    "SIDCo": (3.5, 1.6, 1.25),
    "TopK 0.01": (6, 2.2, 1.6),
    "TopK 0.001": (6, 1.7, 1.2),
    "select, threshold given": (1.3, 1.2, 1.05),
    "decode of 4 payloads, 0.01": (1.2, 1.0, 0.75),
    "FFT compress + decompress": (None, None, 15),
}
"""The project's goals at the three sizes, by the first word(s) of a candidate's name."""


@dataclass
class Candidate:
    name: str
    run: Callable[[], Any]
    residual: np.ndarray  # restored before every call
    others: Sequence[np.ndarray] = ()  # what else it reads or writes: as warm as the residual


class Inputs:
    """A gradient and a residual of n elements, Laplace-distributed, and how to get them back."""

    def __init__(self, n: int) -> None:
        self.n = n
        generator = np.random.default_rng(0)
        self.original_gradient, self.original_residual = (
            generator.laplace(size=n, scale=scale).astype(np.float32) for scale in (1.0, 0.5)
        )
        self.gradient = torch.from_numpy(self.original_gradient.copy())
        self.memory = Residual(get(), n)
        self.out = get().empty(n)

    def restore(self, candidate: Candidate) -> None:
        for array in candidate.others:
            array.max()
        np.copyto(self.gradient.numpy(), self.original_gradient)
        np.copyto(candidate.residual, self.original_residual)


def unit(inputs: Inputs) -> Candidate:
    residual = inputs.gradient.clone()
    return Candidate("residual.add_(gradient)", lambda: residual.add_(inputs.gradient), residual.numpy())


def peer(inputs: Inputs, ratio: float) -> Candidate:
    residual, k = inputs.gradient.clone(), max(1, round(ratio * inputs.n))

    def compress() -> tuple[torch.Tensor, torch.Tensor]:
        residual.add_(inputs.gradient)
        indices = residual.abs().topk(k, sorted=False).indices
        values = residual[indices]
        residual.index_fill_(0, indices, 0)
        return indices, values

    return Candidate(f"torch.topk with error feedback, {ratio}", compress, residual.numpy())


def compressor(inputs: Inputs, name: str, algorithm: Any) -> Candidate:
    memory = inputs.memory
    bucket = Bucket("bucket", 0, inputs.n, memory, get(), rank=0, workers=WORKERS, seed=0)

    def compress() -> Any:
        bucket.step += 1
        memory.begin([inputs.gradient.numpy()])
        return next(algorithm.exchange(bucket))

    return Candidate(name, compress, memory.arrays()["residual"], [memory.rollback()])


def round_trip(inputs: Inputs, name: str, algorithm: Any) -> Candidate:
    """A compressor from the gradient to the decoded mean of a single worker's payload, error feedback included."""
    memory = inputs.memory
    bucket = Bucket("bucket", 0, inputs.n, memory, get(), rank=0, workers=1, seed=0)

    def run() -> None:
        bucket.step += 1
        memory.begin([inputs.gradient.numpy()])
        exchange = algorithm.exchange(bucket)
        gathered = next(exchange).payload[None]
        memory.stage(inputs.out)
        try:
            exchange.send(gathered)
        except StopIteration:
            memory.rollback()

    return Candidate(name, run, memory.arrays()["residual"], [memory.rollback(), inputs.out])


def select(inputs: Inputs, ratio: float) -> Candidate:
    kernels, k = get(), round(ratio * inputs.n)
    capacity = k + k // 4
    memory, out = inputs.memory.arrays()["residual"], inputs.out
    indices, values = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
    threshold = kernels.kth_largest(np.abs(inputs.original_gradient + inputs.original_residual), k)
    return Candidate(
        f"select, threshold given, {ratio}",
        lambda: kernels.select(memory, [inputs.gradient.numpy()], out, threshold, capacity, indices, values),
        memory,
        [out],
    )


def decode(inputs: Inputs, ratio: float) -> Candidate:
    kernels, k = get(), round(ratio * inputs.n)
    layout = SparseFormat(inputs.n, -(-k // 8) * 8)
    out, payloads = inputs.out, np.empty((WORKERS, layout.nbytes), np.uint8)
    indices, values = np.empty(workspace(k), np.uint32), np.empty(workspace(k), np.float32)
    for worker in range(WORKERS):
        gradient = np.random.default_rng(1 + worker).laplace(size=inputs.n).astype(np.float32)
        kept = kernels.select(None, [gradient], out, 0.0, k, indices, values).kept
        layout.encode(kernels, indices[:kept], values[:kept], None, payloads[worker])
    return Candidate(
        f"decode of {WORKERS} payloads, {ratio}",
        lambda: layout.decode(kernels, payloads, 1 / WORKERS, out),
        inputs.memory.arrays()["residual"],
        [out, payloads],
    )


def candidates(inputs: Inputs, peers_only: bool) -> list[Candidate]:
    rows = [unit(inputs), *(peer(inputs, ratio) for ratio in RATIOS)]
    if peers_only:
        return rows
    algorithms: dict[str, Any] = {}
    for ratio in RATIOS:
        for fit in ("exponential", "gamma-pareto", "pareto"):
            algorithms[f"SIDCo {ratio}, {fit}"] = hvd_compress.SIDCo(ratio, fit=fit)
        algorithms[f"TopK {ratio}"] = hvd_compress.TopK(ratio)
    for wire in ("bfloat16", "range8"):
        algorithms[f"TopK, 0.01, {wire}"] = hvd_compress.TopK(0.01, wire=wire)
    rows += [compressor(inputs, name, algorithm) for name, algorithm in algorithms.items()]
    rows.append(compressor(inputs, "FFT compress, 0.1, 8 bits, blocks of 4096", hvd_compress.FFT()))
    rows.append(round_trip(inputs, "FFT compress + decompress, 0.1, 8 bits, blocks of 4096", hvd_compress.FFT()))
    return rows + [make(inputs, ratio) for make in (select, decode) for ratio in RATIOS]


def measure(n: int, rounds: int, peers_only: bool) -> list[dict[str, Any]]:
    """Ratios at one size: a row for each candidate, the unit first (its ratio is 1, its time in microseconds)."""
    inputs = Inputs(n)
    rows = candidates(inputs, peers_only)
    times: dict[str, list[float]] = {c.name: [] for c in rows}
    order = random.Random(0)
    gc.disable()
    for round_number in range(rounds + 1):
        for candidate in order.sample(rows, len(rows)):
            inputs.restore(candidate)
            start = time.perf_counter()
            candidate.run()
            elapsed = time.perf_counter() - start
            if round_number:  # the first one pays for first touches
                times[candidate.name].append(elapsed)
    gc.enable()
    base = times[rows[0].name]
    results = []
    for name, own in times.items():
        ratios = [t / b for t, b in zip(own, base, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        results.append(
            {"n": n, "name": name, "ratio": median(ratios), "quartiles": [low, high], "us": median(own) * 1e6}
        )
    return results


def goal(name: str, n: int) -> float | None:
    for start, goals in GOALS.items():
        if name.startswith(start) and n in SIZES:
            return goals[SIZES.index(n)]
    return None


def processor() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def show(rows: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = sorted({row["n"] for row in rows})
    table = Table("candidate", title="time / time of residual.add_(gradient), one thread; in brackets: goal")
    for n in sizes:
        table.add_column(f"n = {n:,}", justify="right")
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = []
        for n in sizes:
            found = [row for row in rows if row["name"] == name and row["n"] == n]
            wanted = goal(name, n)
            cells.append(f"{found[0]['ratio']:.2f}" + (f" [{wanted}]" if wanted else "") if found else "")
        table.add_row(name.replace("[", "("), *(cell.replace("[", "(").replace("]", ")") for cell in cells))
    console = Console(width=120)
    console.print(table)
    console.print(", ".join(f"{key}: {value}" for key, value in machine.items()), highlight=False)


def plot(rows: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({row["n"] for row in rows})
    names = [name for name in dict.fromkeys(row["name"] for row in rows) if not name.startswith("residual.add_")]
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 + 4 * len(sizes), 1.5 + 0.3 * len(names)), sharey=True)
    for axis, n in zip(np.atleast_1d(axes), sizes, strict=True):
        ratios = [next((r["ratio"] for r in rows if r["name"] == name and r["n"] == n), np.nan) for name in names]
        colours = ["tab:gray" if name.startswith("torch") else "tab:blue" for name in names]
        bars = axis.barh(names, ratios, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=f"n = {n:,}", xscale="log", xlabel="time / time of residual.add_(gradient)")
        axis.margins(x=0.2)
    np.atleast_1d(axes)[0].invert_yaxis()
    figure.suptitle(f"{machine['processor']}, {machine['isa']}, {machine['threads']} thread")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def run_tuned(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The peers once more, in a process of their own: malloc reads its settings when a process starts."""
    command = [sys.executable, __file__, "--peers-only", "--rounds", str(options.rounds), "--sizes"]
    result = subprocess.run(
        [*command, *map(str, options.sizes)], env={**os.environ, **TUNED_MALLOC}, check=True, stdout=subprocess.PIPE
    )
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    tuned = [row for row in rows if not row["name"].startswith("residual.add_")]
    return [row | {"name": f"{row['name']} (tuned malloc)"} for row in tuned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="elements")
    parser.add_argument("--rounds", type=int, default=15, help="at the largest size; smaller ones get more")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    parser.add_argument("--peers-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n in options.sizes:
        rounds = options.rounds * (10 if n < 1_000_000 else 3 if n < 10_000_000 else 1)
        rows += measure(n, rounds, options.peers_only)
    if options.peers_only:
        print(json.dumps(rows))
        return
    rows += run_tuned(options)
    machine = {
        "processor": processor(),
        "isa": host.isa(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hvd_compress": hvd_compress.__version__,
        "load": os.getloadavg()[0],
    }
    show(rows, machine)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
        plot(rows, machine, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
