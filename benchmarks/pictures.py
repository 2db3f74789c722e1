"""The pictures of docs/: what each algorithm does to a real gradient, drawn from what the library returns.

    python benchmarks/pictures.py

Trains the example's network as two ranks do, uncompressed, in one process, for 200 steps. What the compressors would
have done with these gradients goes into docs/pictures, one picture an algorithm. Half a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hvd_compress import (
    DGC,
    FFT,
    Half,
    QSGDMaxNorm,
    QSGDMaxNormMultiScale,
    SIDCo,
    Simulation,
    TernGrad,
    TopK,
    kernels,
)
from hvd_compress.algorithms.sid_thresholds import FITS, Tail
from hvd_compress.cli.pictures import COLOURS, pyplot
from hvd_compress.compressor import Compressor
from hvd_compress.kernels.fourier import Transform

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
from example_training import train
from reconstruction_report import picture_of_formats

ROOT = Path(__file__).resolve().parents[1]
STEPS = 200
RATIO = 0.01
DRAWS = 200
"""Of random compressors, to show what they do on average."""
BLUE, RED, GREEN = COLOURS[:3]
GREY = "0.65"


def training(steps: int) -> list[list[np.ndarray]]:
    """For every step the two workers' gradients of what is compressed, fused to a bucket."""
    found: list[list[np.ndarray]] = []

    def reduce(step: int, gradients: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray] | None:
        parts = [own for own in reversed(gradients.values()) if own[0].ndim > 1 and own[0].size >= 1024]
        found.append([np.concatenate([part[rank].reshape(-1) for part in parts]) for rank in range(2)])
        return None if step + 1 == steps else {name: sum(own) / 2 for name, own in gradients.items()}

    train(reduce)
    return found


def alone(compressor: Compressor, values: np.ndarray) -> np.ndarray:
    """What the receivers get of the first gradient of a single worker."""
    return Simulation(compressor, 1).step({"w": [values[np.newaxis]]})["w"][0]


def memory(simulation: Simulation) -> np.ndarray:
    """What the first worker holds back."""
    state = simulation.compressors[0].state_dict()["memory"]["w"]
    return np.asarray(state.get("velocity", state.get("residual")))


def sidco(gradients: list[list[np.ndarray]], axes: Any) -> None:
    """Thresholds of one to four stages on the tail of the last gradient; how near the count comes, step by step."""
    magnitudes = np.abs(gradients[-1][0])
    ordered = np.sort(magnitudes)[::-1]
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    axes[0].semilogy(ordered, shares, color=GREY, lw=2, label="the gradient's magnitudes")
    line = np.linspace(0, ordered[0], 50)
    axes[0].semilogy(line, np.exp(-line / magnitudes.mean()), ":", color=BLUE, label="exponential of the same mean")
    host = kernels.get()
    sample = np.ascontiguousarray(magnitudes)
    scratch = [np.empty(len(sample) + 64, np.float32) for _ in range(3)]
    moments = host.exceedances(sample, 0.0, scratch[0])
    tail = Tail(host, sample, moments, "exponential", RATIO, scratch[1], scratch[2])
    for stages in (1, 2, 3, 4):
        threshold, count = tail.fit(stages).last
        axes[0].plot(threshold, count / len(sample), "o", color=RED, ms=4 + stages)
        axes[0].annotate(f"{stages}", (threshold, count / len(sample)), (6, 4), textcoords="offset points")
    axes[0].plot([], [], "o", color=RED, label="threshold of 1 to 4 stages")
    axes[0].axhline(RATIO, color=GREEN, lw=1, label=f"ratio={RATIO}")
    axes[0].set(xlabel="threshold", ylabel="share of the elements above", ylim=(1e-4, 1.1), xlim=(0, ordered[20]))
    for fit in FITS:
        simulation = Simulation(SIDCo(RATIO, fit=fit, min_numel=1), 2)
        achieved = []
        for both in gradients:
            simulation.step({"w": [values[np.newaxis] for values in both]})
            achieved.append(simulation.compressors[0].stats()["recent"]["achieved"])
        axes[1].plot(achieved, lw=1, label=fit)
    axes[1].axhline(1, color=GREEN, lw=1)
    axes[1].set(xlabel="step", ylabel="elements sent / meant to be sent", ylim=(0, 1.5))


def topk(gradients: list[list[np.ndarray]], axes: Any) -> None:
    """What is sent of the last gradient; what the memory holds of one element."""
    values = gradients[-1][0]
    ordered = np.sort(values.astype(np.float64) ** 2)[::-1]
    share = np.cumsum(ordered) / ordered.sum()
    axes[0].semilogx(np.arange(1, len(share) + 1) / len(share), share, color=GREY, lw=2, label="exact, sorted")
    for ratio in (0.001, 0.01, 0.1):
        sent = alone(TopK(ratio, min_numel=1), values).astype(np.float64)
        axes[0].plot((sent != 0).mean(), (sent**2).sum() / ordered.sum(), "o", color=RED)
        axes[0].annotate(
            f"{ratio}", ((sent != 0).mean(), (sent**2).sum() / ordered.sum()), (6, -10), textcoords="offset points"
        )
    axes[0].plot([], [], "o", color=RED, label="TopK(ratio)")
    axes[0].set(xlabel="share of the elements", ylabel="share of the energy", ylim=(0, 1.02))

    kept = {name: Simulation(make(RATIO, min_numel=1), 2) for name, make in (("TopK", TopK), ("DGC", DGC))}
    traces: dict[str, list[np.ndarray]] = {name: [] for name in kept}
    for both in gradients[:100]:
        for name, simulation in kept.items():
            simulation.step({"w": [values[np.newaxis] for values in both]})
            traces[name].append(memory(simulation))
    sums = np.cumsum([both[0] for both in gradients[:100]], axis=0)
    # an element that is sent now and then
    often = [(np.diff((np.stack(trace) == 0).astype(int), axis=0) > 0).sum(0) for trace in traces.values()]
    element = int(np.argmax((often[0] == 3) & (often[1] >= 1)))
    axes[1].plot(sums[:, element], color=GREY, lw=1, label="sum of the gradients")
    for (name, trace), color in zip(traces.items(), (BLUE, RED), strict=True):
        axes[1].plot([step[element] for step in trace], color=color, lw=1, label=f"memory, {name}")
    axes[1].set(xlabel="step", ylabel="one element")


def fft(gradients: list[list[np.ndarray]], axes: Any) -> None:
    """One block: its spectrum with what is kept of it; a stretch of it and what is received."""
    block, ratio = 4096, 0.1
    values = np.ascontiguousarray(gradients[-1][0][:block])
    spectra = []
    for each in (values, alone(FFT(ratio, min_numel=1), values)):
        transform = Transform(kernels.get(), block, block)
        spectrum = np.empty(2 * transform.pairs, np.float32)
        transform.forward(each, spectrum)
        spectra.append(np.hypot(spectrum[::2], spectrum[1::2]))
    axes[0].plot(spectra[0], color=GREY, lw=0.5, label="all of one block")
    there = spectra[1] > 0.02 * spectra[1].max()
    axes[0].plot(
        np.flatnonzero(there), spectra[1][there], ".", color=RED, ms=3, label=f"received, ratio={ratio}, 8 bits"
    )
    axes[0].set(xlabel="frequency", ylabel="magnitude")
    axes[1].plot(values[:128], color=GREY, lw=2, label="gradient")
    for share, color in ((0.1, RED), (0.02, BLUE)):
        axes[1].plot(alone(FFT(share, min_numel=1), values)[:128], color=color, lw=1, label=f"received, ratio={share}")
    axes[1].set(xlabel="element", ylabel="value")


def draws(make: Callable[..., Compressor], values: np.ndarray) -> np.ndarray:
    """What is received in so many draws, one row each."""
    simulation = Simulation(make(min_numel=1), 1)
    return np.stack([simulation.step({"w": [values[np.newaxis]]})["w"][0] for _ in range(DRAWS)])


def quantizers(gradients: list[list[np.ndarray]], axes: Any) -> None:
    """Values against what is received of them, in one draw and on average; one scale and two."""
    values = gradients[-1][0]
    some = np.sort(np.random.default_rng(0).choice(values, 4096, replace=False))
    some[0], some[-1] = values.min(), values.max()
    inner = np.abs(some) < 0.3 * np.abs(some).max()
    for axis, (name, make) in zip(
        axes,
        (
            ("one scale, 4 bits", lambda **other: QSGDMaxNorm(4, **other)),
            ("two scales, 4 and 8 bits", lambda **other: QSGDMaxNormMultiScale((4, 8), **other)),
        ),
        strict=True,
    ):
        found = draws(make, some)
        axis.plot(some[inner], found[0][inner], ".", color=GREY, ms=2, label="one draw")
        axis.plot(some[inner], found.mean(0)[inner], ".", color=RED, ms=2, label=f"mean of {DRAWS} draws")
        axis.set(xlabel="element", ylabel="received", title=name)


def half_and_terngrad(gradients: list[list[np.ndarray]], axes: Any) -> None:
    """Relative errors of 16 bits; TernGrad's three values, and their mean."""
    values = gradients[-1][0]
    some = np.abs(values[values != 0])[:40_000]
    for dtype, color in (("bfloat16", RED), ("float16", BLUE)):
        error = np.abs(alone(Half(dtype, min_numel=1), some) / some - 1)
        axes[0].loglog(some, np.maximum(error, 1e-6), ".", ms=1, color=color)
        axes[0].plot([], [], "o", color=color, label=f"Half({dtype!r})")
    axes[0].set(xlabel="magnitude of an element", ylabel="relative error")
    part = np.sort(np.random.default_rng(0).choice(values, 4096, replace=False))
    found = draws(lambda **other: TernGrad(clip=None, **other), part)
    axes[1].plot(part, found[0], ".", color=GREY, ms=2, label="TernGrad, one draw")
    axes[1].plot(part, found.mean(0), ".", color=RED, ms=2, label=f"mean of {DRAWS} draws")
    axes[1].set(xlabel="element", ylabel="received")


PICTURES = {"sidco": sidco, "topk": topk, "fft": fft, "quantizers": quantizers, "half-terngrad": half_and_terngrad}
FORMATS = "range-float"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="folder")
    parser.add_argument("--steps", type=int, default=STEPS, help="to train")
    parser.add_argument("--only", choices=[*PICTURES, FORMATS], nargs="+", default=[*PICTURES, FORMATS], help="which")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    gradients = training(chosen.steps)
    plt = pyplot()
    for name in chosen.only:
        if name == FORMATS:
            picture_of_formats(gradients[-1][0], chosen.out / f"{name}.png")
            continue
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        PICTURES[name](gradients, axes)
        for axis in axes:
            axis.legend(fontsize=8)
        figure.savefig(chosen.out / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
