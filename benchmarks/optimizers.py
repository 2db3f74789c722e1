"""What compression costs a small transformer in accuracy, under AdamW and under SGD with momentum.

    python benchmarks/optimizers.py --out docs/results/optimizers

Two workers in one process (``hvd_compress.Simulation``) train a transformer on bytes: the text of Python's own
documentation, as ``pydoc_data.topics`` has it, a tenth of it held back for validation. Every compression and optimizer
has the same three seeds, each of weights and of the order of the text. Writes a JSON file, a table and a picture; a run
that the JSON file has is not repeated. Four minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import nn

from hvd_compress import QSGDMaxNorm, SharedTopK, SIDCo, Simulation, TopK, WarmUp
from hvd_compress.advisor import machine
from hvd_compress.cli.pictures import line_styles, name_lines, pyplot, save
from hvd_compress.compressor import Compressor

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
import workloads

WORKERS, BATCH, LENGTH, WIDTH, LAYERS = 2, 8, 32, 96, 2
STEPS = 200
LOOKS = (30, 100, 200)
"""Steps after which the validation loss is taken."""
SEEDS = (0, 1, 2)
EVERY = 10
"""Steps of a stage of the warm-up."""
ADAM_RATE, SGD_RATE = 0.002, 0.1
RISE = 30
"""Steps in which the learning rate rises; then it falls as half a cosine."""
NONE = "uncompressed"

COMPRESSIONS: dict[str, Callable[[], Compressor] | None] = {
    NONE: None,
    "QSGDMaxNorm(8)": lambda: QSGDMaxNorm(8),
    "SIDCo(0.1)": lambda: SIDCo(0.1),
    "SIDCo(0.01)": lambda: SIDCo(0.01),
    "SIDCo(0.01), warm-up": lambda: SIDCo(WarmUp(0.01, every=EVERY)),
    "TopK(0.01)": lambda: TopK(0.01),
    "SharedTopK(0.01)": lambda: SharedTopK(0.01),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=ADAM_RATE, weight_decay=0.01),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=SGD_RATE, momentum=0.9),
}

RUNS = {
    "AdamW": (NONE, "QSGDMaxNorm(8)", "SIDCo(0.1)", "SIDCo(0.01)", "SIDCo(0.01), warm-up"),
    "SGD": (NONE, "QSGDMaxNorm(8)", "SIDCo(0.01)", "TopK(0.01)", "SharedTopK(0.01)"),
}


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes to train on, and those held back."""
    whole = "\n".join(topics[name] for name in sorted(topics)).encode()
    stream = torch.frombuffer(bytearray(whole), dtype=torch.uint8).long()
    cut = len(stream) * 9 // 10
    return stream[:cut], stream[cut:]


def batch(stream: torch.Tensor, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``size`` pieces of the text, and their next bytes."""
    starts = torch.randint(0, len(stream) - LENGTH - 1, (size,), generator=generator)
    rows = torch.stack([stream[start : start + LENGTH + 1] for start in starts.tolist()])
    return rows[:, :-1], rows[:, 1:].flatten()


def network() -> nn.Module:
    """The transformer of ``workloads``, smaller."""
    return workloads.Transformer(WIDTH, LENGTH, LAYERS)


def run(optimizer: str, compression: str, seed: int) -> dict[str, Any]:
    """Train once; validation losses after the steps of ``LOOKS``."""
    training, held_back = text()
    torch.manual_seed(seed)
    model = network()
    parameters = dict(model.named_parameters())
    update = OPTIMIZERS[optimizer](parameters.values())
    schedule = torch.optim.lr_scheduler.LambdaLR(
        update, lambda step: min(1.0, (step + 1) / RISE) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
    )
    make = COMPRESSIONS[compression]
    simulation = Simulation(make(), WORKERS) if make else None
    generators = [torch.Generator().manual_seed(1000 * seed + worker) for worker in range(WORKERS)]
    losses = []
    for step in range(1, STEPS + 1):
        gradients: dict[str, list[np.ndarray]] = {name: [] for name in reversed(parameters)}
        for generator in generators:
            inputs, labels = batch(training, BATCH, generator)
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            for name, parameter in parameters.items():
                gradients[name].append(parameter.grad.numpy().copy())
        means = simulation.step(gradients) if simulation else {n: sum(g) / WORKERS for n, g in gradients.items()}
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(np.ascontiguousarray(means[name], dtype=np.float32))
        update.step()
        schedule.step()
        if step in LOOKS:
            losses.append(round(validate(model, held_back), 4))
    return {"losses": losses}


@torch.no_grad()
def validate(model: nn.Module, held_back: torch.Tensor) -> float:
    """The loss on 256 pieces of the text that was held back, the same every time."""
    inputs, labels = batch(held_back, 256, torch.Generator().manual_seed(0))
    return float(nn.functional.cross_entropy(model(inputs), labels))


def curve(content: dict[str, Any], optimizer: str, compression: str) -> list[list[float]]:
    """The losses of every seed."""
    return [
        one["losses"] for one in content["runs"] if one["optimizer"] == optimizer and one["compression"] == compression
    ]


def markdown(content: dict[str, Any]) -> str:
    """The table, with what it takes to repeat it."""
    columns = " | ".join(f"after {step} steps" for step in LOOKS)
    rows = []
    for optimizer, compressions in RUNS.items():
        plain = mean(losses[-1] for losses in curve(content, optimizer, NONE))
        for compression in compressions:
            losses = curve(content, optimizer, compression)
            cells = [f"{mean(found):.2f} ({min(found):.2f} to {max(found):.2f})" for found in zip(*losses, strict=True)]
            difference = f"{mean(one[-1] for one in losses) - plain:+.2f}" if compression != NONE else ""
            rows.append(f"| {optimizer} | {compression} | {' | '.join(cells)} | {difference} |")
    return f"""# Optimizers: a transformer under AdamW and SGD

Validation loss, in nats a byte, of a transformer of {content["parameters"]:,} parameters ({LAYERS} layers of width
{WIDTH}) on the text of Python's documentation: {WORKERS} workers with {BATCH} pieces of {LENGTH} bytes each, {STEPS}
steps. Every cell has the mean of three seeds and, in brackets, the lowest and the highest of them; lower is better. The
learning rate is {ADAM_RATE} for AdamW and {SGD_RATE} for SGD (momentum 0.9); it rises for {RISE} steps and falls as a
cosine. It was not tuned for any compression.

| optimizer | compression | {columns} | difference |
|---|---|{"---|" * len(LOOKS)}---|
{chr(10).join(rows)}

The warm-up is `WarmUp(0.01, every={EVERY})`. One small model on one text: an example, not a promise.

![validation loss by step](optimizers.png)

Repeat (four minutes of one core; {content["machine"]["processor"]}):

```sh
python benchmarks/optimizers.py --out build/optimizers
```
"""


def picture(content: dict[str, Any], path: Path) -> None:
    """Mean losses against steps: a diagram an optimizer."""
    styles = line_styles(list(COMPRESSIONS))
    figure, axes = pyplot().subplots(1, len(RUNS), figsize=(13, 5), layout="constrained", sharey=True)
    for axis, (optimizer, compressions) in zip(axes, RUNS.items(), strict=True):
        for compression in compressions:
            losses = np.mean(curve(content, optimizer, compression), axis=0)
            axis.plot(LOOKS, losses, label=compression, ms=5, **styles[compression])
        axis.set(title=optimizer, xlabel="step", ylabel="validation loss, mean of three seeds")
        axis.grid(visible=True)
        name_lines(axis)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="path of the results, without suffix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out.with_suffix(".json")
    parameters = sum(parameter.numel() for parameter in network().parameters())
    content: dict[str, Any] = {"parameters": parameters, "machine": machine.describe(), "runs": []}
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    for seed in SEEDS:
        for optimizer, compressions in RUNS.items():
            for compression in compressions:
                key = {"steps": STEPS, "optimizer": optimizer, "compression": compression, "seed": seed}
                if any(key.items() <= one.items() for one in content["runs"]):
                    continue
                found = {**key, **run(optimizer, compression, seed)}
                print(found, flush=True)
                content["runs"].append(found)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
    picture(content, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
