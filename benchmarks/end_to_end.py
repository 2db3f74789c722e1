"""Step time of PyTorch training under Horovod, against the same step without any communication.

    mpirun -np 2 --oversubscribe python benchmarks/end_to_end.py --out build/end_to_end.json

Every round runs every candidate for a few steps, in a random order that is the same on all ranks; a candidate's step
time is the median over all its steps of the slowest rank, and figures are ratios of those medians. All candidates of a
model run in one process, on copies of the model with the same weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress.kernels import host

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import networks

CANDIDATES: dict[str, Callable[[], Any]] = {
    "no communication": lambda: None,
    "Horovod uncompressed": lambda: hvd.Compression.none,
    "Horovod fp16": lambda: hvd.Compression.fp16,
    "SIDCo 0.01": lambda: hvd_compress.SIDCo(0.01),
    "SIDCo 0.001": lambda: hvd_compress.SIDCo(0.001),
    "TopK 0.001": lambda: hvd_compress.TopK(0.001),
    "QSGDMaxNorm 2": lambda: hvd_compress.QSGDMaxNorm(2),
    "QSGDMaxNorm 4": lambda: hvd_compress.QSGDMaxNorm(4),
    "QSGDMaxNorm 6": lambda: hvd_compress.QSGDMaxNorm(6),
    "QSGDMaxNorm 8": lambda: hvd_compress.QSGDMaxNorm(8),
    "QSGDMaxNormMultiScale (2, 6)": lambda: hvd_compress.QSGDMaxNormMultiScale((2, 6)),
    "QSGDMaxNormMultiScale (4, 8)": lambda: hvd_compress.QSGDMaxNormMultiScale((4, 8)),
    "RandKMaxNorm 0.1, 8": lambda: hvd_compress.RandKMaxNorm(0.1, 8),
    "RandKMaxNormMultiScale 0.1, (4, 8)": lambda: hvd_compress.RandKMaxNormMultiScale(0.1, (4, 8)),
}


def wide() -> torch.nn.Module:
    """An MLP of 21.0 million parameters."""
    return torch.nn.Sequential(
        torch.nn.Linear(1024, 4096),
        torch.nn.ReLU(),
        torch.nn.Linear(4096, 4096),
        torch.nn.ReLU(),
        torch.nn.Linear(4096, 10),
    )


def deep() -> torch.nn.Module:
    """42 layers of 512: 10.6 million parameters."""
    layers: list[torch.nn.Module] = [torch.nn.Linear(1024, 512), torch.nn.ReLU()]
    for _ in range(40):
        layers += [torch.nn.Linear(512, 512), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(512, 10))


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "MLP 21.0M": (wide, (1024,)),
    "42 layers of 512": (deep, (1024,)),
    "ResNet": (networks.resnet, (1, 28, 28)),
    "VGG-like": (networks.vgg, (1, 28, 28)),
}
"""Networks by name, and the shape of what they take."""


class Candidate:
    """A copy of the model, its optimizer, and the times of its steps in seconds."""

    def __init__(self, name: str, label: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.model = MODELS[label][0]()
        self.compression = CANDIDATES[name]()
        sgd = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.optimizer: Any = sgd
        if self.compression is not None:
            self.optimizer = hvd.DistributedOptimizer(
                sgd,
                named_parameters=[(f"{label}.{name}.{key}", p) for key, p in self.model.named_parameters()],
                compression=self.compression,
            )
        self.times: list[float] = []

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        """One step; returns its time."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()
        return time.perf_counter() - began


def measure(label: str, rounds: int, steps: int, batch: int, names: list[str]) -> list[dict[str, Any]]:
    """Run the rounds of one model; returns one row per candidate."""
    candidates = [Candidate(name, label) for name in names]
    generator = torch.Generator().manual_seed(hvd.rank())
    order = random.Random(0)
    for number in range(rounds + 1):
        for candidate in order.sample(candidates, len(candidates)):
            inputs = torch.randn(batch, *MODELS[label][1], generator=generator)
            labels = torch.randint(0, 10, (batch,), generator=generator)
            hvd.barrier()
            for _ in range(steps):
                seconds = candidate.step(inputs, labels)
                if number > 0:  # the first round warms up, and lays the buckets out
                    candidate.times.append(seconds)
            if number == 0 and isinstance(candidate.compression, hvd_compress.Compressor):
                candidate.compression.stats()
    rows = []
    everyone = hvd.allgather_object([candidate.times for candidate in candidates])
    base = 0.0
    for i, candidate in enumerate(candidates):
        slowest = [max(times) for times in zip(*(rank[i] for rank in everyone), strict=True)]
        row: dict[str, Any] = {"model": label, "candidate": candidate.name, "ms": 1000 * median(slowest)}
        base = base or row["ms"]
        row["ratio"] = row["ms"] / base
        if isinstance(candidate.compression, hvd_compress.Compressor):
            recent = candidate.compression.stats()["recent"]
            row["sent_mb"] = recent["sent_bytes"] / recent["steps"] / 1e6
            row["phases_ms"] = {k: 1000 * v / recent["steps"] for k, v in recent["seconds"].items()}
            row["achieved"] = recent["achieved"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5, help="steps of one candidate in one round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    names = ["no communication", *(name for name in options.candidates if name != "no communication")]
    hvd.init()
    torch.set_num_threads(options.threads)
    rows = []
    for label in options.models:
        rows += measure(label, options.rounds, options.steps, options.batch, names)
    if hvd.rank() > 0:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "candidate", "ms a step", "against no communication", "compress / wait / decompress, ms")
    for row in rows:
        phases = " / ".join(f"{ms:.1f}" for ms in row.get("phases_ms", {}).values())
        table.add_row(row["model"], row["candidate"], f"{row['ms']:.1f}", f"{row['ratio']:.3f}", phases)
    Console(width=120).print(table)
    if options.out:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "kernels": host.isa(),
            "ranks": hvd.size(),
            "threads a rank": options.threads,
            "torch": torch.__version__,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
