"""What compression costs on one thread, in units of the cheapest thing it could cost: our goals, and the peers.

    python benchmarks/kernels.py --out build/kernels          # writes kernels.json and kernels.png, prints a table

How it is measured is said in ``hvd_compress.advisor.benchmark`` (``hvd-compress bench`` does it for compressors of your
choice); the unit is ``residual.add_(gradient)`` in torch. Quantizers have no error feedback, and are timed kernel by
kernel; their codes leave room for the sum over 4 workers. The peers are torch.topk with error feedback, and quantizers
in torch: under the default malloc, and under one that keeps its memory (``MALLOC_MMAP_MAX_=0``,
``MALLOC_TRIM_THRESHOLD_=1000000000``), without which page faults are most of its cost at large sizes.

    python benchmarks/kernels.py --device cuda --out build/kernels-gpu

does the same on a GPU, with the candidates and goals of ``on_device``: by CUDA's events, with something else in the
cache before every call, and it counts how often the host waits for the device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quantizers
import torch
from rich.console import Console

import hvd_compress
from hvd_compress.advisor import device_timing, machine
from hvd_compress.advisor.benchmark import (
    PEER,
    UNIT,
    WORKERS,
    Candidate,
    compressor,
    decode,
    decode_limit,
    measure,
    rounds_for,
    select,
    unit,
)
from hvd_compress.advisor.exchange_timing import Inputs
from hvd_compress.cli.bench import picture, table
from hvd_compress.exchange import Bucket
from hvd_compress.kernels import get

SIZES = (262_144, 4_000_000, 25_600_000)
RATIOS = (0.01, 0.001)
MANY = 64
"""Payloads of a larger cluster."""
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
GOALS: dict[str, tuple[float | None, ...]] = {
    "SIDCo": (3.5, 1.6, 1.25),
    "TopK 0.01": (6, 2.2, 1.6),
    "TopK 0.001": (6, 1.7, 1.2),
    "select, threshold given": (1.3, 1.2, 1.05),
    "decode of 4 payloads, 0.01": (1.2, 1.0, 0.75),
    "quantize + pack": (1.3, 1.0, 0.9),
    "unpack": (1.2, 0.85, 0.65),
    "two-scale": (2.0, 1.7, 1.5),
    "FFT compress + decompress": (None, None, 15),
}
"""The project's goals at the three sizes, by the first word(s) of a candidate's name."""


def peer(inputs: Inputs, ratio: float) -> Candidate:
    gradient, k = torch.from_numpy(inputs.gradient), max(1, round(ratio * inputs.n))
    residual = gradient.clone()

    def compress() -> tuple[torch.Tensor, torch.Tensor]:
        residual.add_(gradient)
        indices = residual.abs().topk(k, sorted=False).indices
        values = residual[indices]
        residual.index_fill_(0, indices, 0)
        return indices, values

    return Candidate(f"torch.topk with error feedback, {ratio}", compress, residual.numpy(), kind=PEER)


def round_trip(inputs: Inputs, name: str, algorithm: hvd_compress.Compressor) -> Candidate:
    """From the gradient to the decoded mean of a single worker's payload, error feedback included."""
    memory = inputs.memory
    bucket = Bucket("bucket", inputs.n, memory, get(), rank=0, workers=1, seed=0)

    def run() -> None:
        bucket.step += 1
        memory.begin([inputs.gradient])
        exchange = algorithm.exchange(bucket)
        gathered = next(exchange).payload[None]  # type: ignore[union-attr]
        memory.stage(inputs.out)
        with contextlib.suppress(StopIteration):
            exchange.send(gathered)
        memory.rollback()

    return Candidate(name, run, memory.arrays()["residual"], [memory.rollback(), inputs.out], "compressor")


def candidates(inputs: Inputs, peers_only: bool) -> list[Candidate]:
    rows = [unit(inputs, with_torch=True), *(peer(inputs, ratio) for ratio in RATIOS)]
    gradient, residual = torch.from_numpy(inputs.gradient), rows[0].residual
    rows += [Candidate(name, run, residual, others, PEER) for name, run, others in quantizers.peers(gradient)]
    if peers_only:
        return rows
    algorithms: dict[str, Any] = {}
    for ratio in RATIOS:
        for fit in ("exponential", "gamma-pareto", "pareto"):
            algorithms[f"SIDCo {ratio}, {fit}"] = hvd_compress.SIDCo(ratio, fit=fit)
        algorithms[f"TopK {ratio}"] = hvd_compress.TopK(ratio)
    for wire in ("bfloat16", "range8"):
        algorithms[f"TopK, 0.01, {wire}"] = hvd_compress.TopK(0.01, wire=wire)
    algorithms["FFT compress, 0.1, 8 bits"] = hvd_compress.FFT()
    rows += [compressor(inputs, name, algorithm) for name, algorithm in algorithms.items()]
    rows.append(round_trip(inputs, "FFT compress + decompress, 0.1, 8 bits", hvd_compress.FFT()))
    rows += [make(inputs, ratio) for make in (select, decode) for ratio in RATIOS]
    rows += [make(inputs, RATIOS[0], MANY) for make in (decode, decode_limit)]
    lanes = quantizers.rows(gradient, inputs.out, WORKERS)
    return rows + [Candidate(name, run, residual, others) for name, run, others in lanes]


def goal(name: str, n: int) -> float | None:
    for start, goals in GOALS.items():
        if name.startswith(start) and n in SIZES:
            return goals[SIZES.index(n)]
    return None


def run_tuned(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The peers once more, in a process of their own: malloc reads its settings when a process starts."""
    command = [sys.executable, __file__, "--peers-only", "--rounds", str(options.rounds), "--sizes"]
    result = subprocess.run(
        [*command, *map(str, options.sizes)], env={**os.environ, **TUNED_MALLOC}, check=True, stdout=subprocess.PIPE
    )
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    tuned = [row for row in rows if row["kind"] != UNIT]
    return [row | {"name": f"{row['name']} (tuned malloc)"} for row in tuned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="elements")
    parser.add_argument("--device", help="a CUDA device, such as cuda, instead of the CPU")
    parser.add_argument("--rounds", type=int, default=15, help="at the largest size; smaller ones get more")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    parser.add_argument("--peers-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device:
        time_on_device(options)
        return
    options.sizes = options.sizes or list(SIZES)
    torch.set_num_threads(1)
    rows = []
    for n in options.sizes:
        inputs = Inputs(n)
        rows += measure(inputs, candidates(inputs, options.peers_only), rounds_for(n, options.rounds))
    if options.peers_only:
        print(json.dumps(rows))
        return
    rows += run_tuned(options)
    show(rows, machine.describe(), goal, options)


def time_on_device(options: argparse.Namespace) -> None:
    import on_device

    make = device_timing.inputs_on(options.device)
    rows = []
    for n in options.sizes or on_device.SIZES:
        inputs = make(n)
        rows += measure(inputs, on_device.candidates(inputs), rounds_for(n, options.rounds))
    about = machine.describe() | {"device": device_timing.describe(options.device)}
    show(rows, about, on_device.goal, options)


def show(
    rows: list[dict[str, Any]],
    about: dict[str, Any],
    wanted: Callable[[str, int], float | None],
    options: argparse.Namespace,
) -> None:
    console = Console(width=120)
    console.print(table(rows, wanted))
    if any(row["waits"] is not None for row in rows):
        console.print("microseconds, and in brackets how often the host waits for the device:")
        for row in rows:
            waits = "" if row["waits"] is None else f" ({row['waits']})"
            console.print(f"  {row['n']:>11,}  {row['name']}: {row['us']:,.1f}{waits}", highlight=False)
    console.print(", ".join(f"{key}: {value}" for key, value in about.items()), highlight=False)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
        picture(rows, about, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
