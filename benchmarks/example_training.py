"""The example's network, trained as several ranks train it, in one process: its gradients, and what it learns by means
that are made in another way."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import hvd_compress
from hvd_compress import FFT

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import fashion_mnist
import flags

WORKERS = 2


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The example's: linear rise over the first 5 %, then half a cosine down to 0."""
    rise = int(0.05 * steps)
    return peak * ((step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise))))


Reduce = Callable[[int, dict[str, list[np.ndarray]]], dict[str, np.ndarray] | None]
"""The means of the workers' gradients in a step; None: that is enough."""


def train(
    reduce: Reduce, epochs: int | None = None, images: int | None = None, threads: int = 1, workers: int = WORKERS
) -> float:
    """Train with the example's defaults, the workers in turn on one model, with as many images a step as two ranks of
    the example have; returns the test accuracy."""
    import networks
    import torch

    chosen, _ = flags.parse("", [])
    torch.set_num_threads(threads)
    torch.manual_seed(chosen.seed)
    data = fashion_mnist.load(None, chosen.data).limited(images)
    if data.note:
        raise SystemExit(data.note)
    first = data.train_images[:10000]
    mean, std = np.float32(first.mean(dtype=np.float64)), np.float32(first.std(dtype=np.float64, ddof=1))

    def scaled(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((images.astype(np.float32) - mean) / std).unsqueeze(1)

    model = networks.network(chosen.model, chosen.width)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(
        parameters.values(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
    )
    count, epochs = len(data.train_images), epochs or chosen.epochs
    batch = chosen.batch_size * WORKERS // workers
    steps = epochs * fashion_mnist.steps_per_epoch(count, batch, workers)
    step = 0
    for epoch in range(epochs):
        order = (count, batch, chosen.seed, epoch)
        for batches in zip(*(fashion_mnist.batches(*order, rank, workers) for rank in range(workers)), strict=True):
            gradients = []
            for chosen_images in batches:
                labels = torch.from_numpy(data.train_labels[chosen_images])
                loss = torch.nn.functional.cross_entropy(model(scaled(data.train_images[chosen_images])), labels)
                gradients.append(torch.autograd.grad(loss, list(parameters.values())))
            named = zip(parameters, zip(*gradients, strict=True), strict=True)
            means = reduce(step, {name: [g.numpy() for g in own] for name, own in named})
            if means is None:
                return math.nan
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(means[name])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, chosen.lr)
            optimizer.step()
            step += 1
    model.eval()
    with torch.no_grad():
        guesses = [
            model(scaled(data.test_images[at : at + 500])).argmax(1).numpy()
            for at in range(0, len(data.test_images), 500)
        ]
    return float(np.mean(np.concatenate(guesses) == data.test_labels))


def record(points: Sequence[int], out: Path, threads: int) -> None:
    """Train uncompressed; write OUT/STEP.npz: for each parameter the workers' gradients."""
    out.mkdir(parents=True, exist_ok=True)

    def reduce(step: int, gradients: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray] | None:
        if step in points:
            np.savez(out / f"{step}.npz", **{name: np.stack(own) for name, own in gradients.items()})
            print(f"after {step} steps", flush=True)
        return None if step == max(points) else {name: sum(own) / WORKERS for name, own in gradients.items()}

    train(reduce, threads=threads)


def converge(images: int, threads: int) -> None:
    """Train one epoch on so many images without error feedback, theta constant and diminishing; print the table."""
    schedule = hvd_compress.DiminishingTheta(0.995, every=150)
    steps = images // (32 * WORKERS)
    middle = round(float(np.mean([schedule(step) for step in range(steps)])), 3)
    print("| | test accuracy, % | MB in all |\n|---|---|---|")
    for compressor in (
        hvd_compress.Dense(),
        FFT(0.005, error_feedback=False),
        FFT(schedule, error_feedback=False),
        FFT(middle, error_feedback=False),
        FFT(0.005),
    ):
        simulation = hvd_compress.Simulation(compressor, WORKERS)

        def reduce(
            step: int, gradients: dict[str, list[np.ndarray]], simulation: hvd_compress.Simulation = simulation
        ) -> dict[str, np.ndarray]:
            return simulation.step(dict(reversed(gradients.items())))

        accuracy = 100 * train(reduce, epochs=1, images=images, threads=threads)
        sent = simulation.compressors[0].stats()["total"]["sent_bytes"] / 1e6
        print(f"| `{compressor!r}` | {accuracy:.2f} | {sent:.1f} |", flush=True)


def recorded(folder: Path) -> dict[int, list[np.ndarray]]:
    """For every step the workers' gradients of the parameters that are compressed under PyTorch, fused to a bucket in
    the order of the backward pass."""
    result = {}
    for path in sorted(folder.glob("*.npz"), key=lambda p: int(p.stem)):
        with np.load(path) as arrays:
            parts = [arrays[name] for name in reversed(arrays.files)]
        compressed = [part.reshape(WORKERS, -1) for part in parts if part.ndim > 2 and part[0].size >= 1024]
        result[int(path.stem)] = list(np.concatenate(compressed, axis=1))
    return result
