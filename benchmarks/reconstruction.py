"""How well a gradient survives compression: the error of what the receivers get, at equal bytes.

    python benchmarks/reconstruction.py record
    python benchmarks/reconstruction.py report
    python benchmarks/reconstruction.py converge

``record`` trains the example's network as two ranks do, uncompressed, in one process, and keeps the gradients of some
steps. ``report`` compresses those, each as the first gradient of a single worker, and writes tables and pictures.
``converge`` trains without error feedback, with a constant and with a diminishing theta.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import hvd_compress
from hvd_compress import FFT, QSGDMaxNorm, QSGDMaxNormMultiScale, RandKMaxNorm, TernGrad, TopK, kernels
from hvd_compress.cli.pictures import COLOURS, line_styles, name_lines, pyplot, save
from hvd_compress.codecs import range_float
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import packed_bytes
from hvd_compress.kernels.fourier import Transform

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import fashion_mnist
import flags

ROOT = Path(__file__).resolve().parents[1]

WORKERS = 2
POINTS = (20, 200, 1000, 2500)
"""After so many steps gradients are recorded. (The three epochs of the example are 2,811.)"""
BUDGETS = (4, 8, 16, 32, 64)
"""So many times smaller than float32."""
SLACK = 1.01
"""Headers and padding may exceed a budget by 1 %."""
FFT_BITS = (4, 5, 6, 8, 10)
SEEDS = range(3)
"""Random compressors are run so often, each time with other random numbers."""
KEPT = 0.1
"""Fraction of the elements, or frequencies, on whose values number formats are compared."""


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


@dataclass
class Candidate:
    """A compressor but for the fraction that it sends (if it has one) and the seed."""

    family: str
    name: str
    make: Callable[..., hvd_compress.Compressor]
    selective: bool = False
    ratios: dict[int, float | None] = field(default_factory=dict)
    """By budget; None: it has no ratio. A compressor without one is listed at the smallest budget that it fits."""
    sent: dict[int, int] = field(default_factory=dict)
    """Bytes by budget."""


def candidates() -> Iterator[Candidate]:
    for block, family in ((4096, "FFT"), (None, "FFT, one transform")):
        for bits in FFT_BITS:

            def fft(bits: int = bits, block: int | None = block, **other: Any) -> FFT:
                return FFT(bits=bits, block=block, error_feedback=False, **other)

            yield Candidate(family, f"{family}, {bits} bits", fft, selective=True)
    for wire in ("float32", "bfloat16", "range8"):

        def topk(wire: str = wire, **other: Any) -> TopK:
            return TopK(wire=wire, error_feedback=False, **other)

        yield Candidate(f"TopK {wire}", f"TopK {wire}", topk, selective=True)
    for bits in (2, 4, 8):
        yield Candidate("QSGDMaxNorm", f"QSGDMaxNorm, {bits} bits", lambda b=bits, **other: QSGDMaxNorm(b, **other))
    for scales in ((2, 4), (2, 6), (3, 6), (3, 8), (4, 8, 12), (6, 9), (6, 12)):

        def several(scales: tuple[int, ...] = scales, **other: Any) -> QSGDMaxNormMultiScale:
            return QSGDMaxNormMultiScale(scales, **other)

        yield Candidate("QSGDMaxNormMultiScale", f"QSGDMaxNormMultiScale, {scales} bits", several)
    for bits in (2, 4, 8):

        def randk(bits: int = bits, **other: Any) -> RandKMaxNorm:
            return RandKMaxNorm(bits=bits, error_feedback=False, **other)

        yield Candidate("RandKMaxNorm", f"RandKMaxNorm, {bits} bits", randk, selective=True)
    yield Candidate("TernGrad", "TernGrad", lambda **other: TernGrad(clip=None, **other))
    yield Candidate("TernGrad", "TernGrad, clip 2.5", lambda **other: TernGrad(clip=2.5, **other))


def received(compressor: hvd_compress.Compressor, gradient: np.ndarray) -> tuple[np.ndarray, int]:
    """What the receivers get of a single worker's first gradient, and the bytes handed to collectives."""
    simulation = hvd_compress.Simulation(compressor, workers=1)
    mean = simulation.step({"bucket": [gradient]})["bucket"]
    return mean, simulation.compressors[0].stats()["total"]["sent_bytes"]


def relative_error(gradient: np.ndarray, decoded: np.ndarray) -> float:
    wide = gradient.astype(np.float64)
    return float(np.linalg.norm(wide - decoded) / np.linalg.norm(wide))


def fit(candidate: Candidate, gradient: np.ndarray) -> None:
    """Find the largest ratios that keep to the budgets. (Bytes do not depend on data.)"""
    if not candidate.selective:
        size = received(candidate.make(), gradient)[1]
        fitting = [budget for budget in BUDGETS if size <= SLACK * gradient.nbytes / budget]
        if fitting:
            candidate.ratios[fitting[-1]], candidate.sent[fitting[-1]] = None, size
        return
    for budget in BUDGETS:
        limit = SLACK * gradient.nbytes / budget
        low, high = 0.0, 1.0
        best, size = None, received(candidate.make(ratio=1.0), gradient)[1]
        if size <= limit:
            best = (1.0, size)
        while high > 1e-6 and (best is None or (best[0] < 1 and high - low > 2e-4 * high)):
            middle = (low + high) / 2
            size = received(candidate.make(ratio=middle), gradient)[1]
            if size <= limit:
                low, best = middle, (middle, size)
            else:
                high = middle
        if best is not None:
            candidate.ratios[budget], candidate.sent[budget] = best


def errors(points: dict[int, list[np.ndarray]]) -> list[dict[str, Any]]:
    """A row for each candidate and budget that it fits: ratio, bytes, and by step the mean relative error."""
    rows = []
    for candidate in candidates():
        fit(candidate, next(iter(points.values()))[0])
        for budget, ratio in candidate.ratios.items():
            own = {} if ratio is None else {"ratio": ratio}
            by_step = {
                step: float(
                    np.mean(
                        [
                            relative_error(gradient, received(candidate.make(seed=seed, **own), gradient)[0])
                            for gradient in gradients
                            for seed in SEEDS
                        ]
                    )
                )
                for step, gradients in points.items()
            }
            row = {"family": candidate.family, "name": candidate.name, "budget": budget, "ratio": ratio}
            rows.append({**row, "sent_bytes": candidate.sent[budget], "error": by_step})
        print(candidate.name, flush=True)
    return rows


def without_transform(points: dict[int, list[np.ndarray]]) -> list[dict[str, Any]]:
    """Rows for what FFT would be without its transform: the strongest elements, or pairs of neighbours, marked and
    coded as FFT marks and codes frequencies. This is computed; it is no compressor."""
    rows = []
    for group, family in ((1, "FFT's payload, elements"), (2, "FFT's payload, pairs of elements")):
        for bits in FFT_BITS:
            for budget in BUDGETS:
                d = len(next(iter(points.values()))[0])
                room = int(SLACK * 4 * d / budget) - 40
                by_bitmap = int((room - d / group / 8) * 8 / (group * bits))
                by_position = int(room / (2 + group * bits / 8))
                k = min(max(by_bitmap, by_position), d // group)
                size = 40 + int(min(d / group / 8, 2 * k) + k * group * bits / 8)
                row = {"family": family, "name": f"{family}, {bits} bits", "budget": budget, "sent_bytes": size}
                by_step = {
                    step: float(np.mean([relative_error(g, strongest(g, group, k, bits)) for g in gradients]))
                    for step, gradients in points.items()
                }
                rows.append({**row, "ratio": k * group / d, "error": by_step})
    return rows


def strongest(gradient: np.ndarray, group: int, k: int, bits: int) -> np.ndarray:
    """The gradient with only its ``k`` strongest groups of neighbours, as range-based floats."""
    groups = gradient[: len(gradient) - len(gradient) % group].reshape(-1, group)
    chosen = np.argpartition((groups**2).sum(1), -k)[-k:]
    result = np.zeros_like(gradient)
    values = np.ascontiguousarray(groups[chosen].reshape(-1))
    result[: groups.size].reshape(-1, group)[chosen] = ranged(values, bits)[0].reshape(-1, group)
    return result


def spectrum_of(gradient: np.ndarray, block: int | None) -> np.ndarray:
    """The frequencies, a row of real and imaginary part each."""
    transform = Transform(kernels.get(), len(gradient), block)
    spectrum = np.empty(2 * transform.pairs, np.float32)
    transform.forward(gradient, spectrum)
    return spectrum.reshape(-1, 2)


def concentration(points: dict[int, list[np.ndarray]]) -> list[dict[str, Any]]:
    """How much of the energy the strongest elements have, and the strongest frequencies: of the gradient as it is, and
    with its elements in random order, which leaves no frequencies to speak of."""
    rows = []
    for step, (gradient, *_) in points.items():
        generator, whole = np.random.default_rng(0), len(gradient) // 4096 * 4096
        blocks = generator.permuted(gradient[:whole].reshape(-1, 4096), axis=1)
        variants = {
            "frequencies": gradient,
            "the same, elements of each block in random order": np.append(blocks, gradient[whole:]),
            "the same, all elements in random order": generator.permutation(gradient),
        }
        energies = {"elements": gradient.astype(np.float64) ** 2}
        energies |= {name: (spectrum_of(x, 4096).astype(np.float64) ** 2).sum(1) for name, x in variants.items()}
        for name, energy in energies.items():
            share = np.cumsum(np.sort(energy)[::-1]) / energy.sum()
            of = {str(part): float(share[round(part * len(share)) - 1]) for part in (0.01, 0.05, 0.1, 0.25)}
            rows.append({"step": step, "of": name, "share": of})
    return rows


def uniform(values: np.ndarray, bits: int) -> np.ndarray:
    """Rounded to the nearest of ``2^bits - 1`` values, evenly spaced over plus and minus the largest magnitude."""
    levels = 2 ** (bits - 1) - 1
    unit = np.abs(values).max() / np.float64(levels)
    return (np.rint(values / unit) * unit).astype(np.float32)


def ranged(values: np.ndarray, bits: int) -> tuple[np.ndarray, RangeFloat]:
    """As a range-based float whose mantissa is chosen as FFT chooses it; and the format."""
    host = kernels.get()
    number = range_float.fit(host, values, bits, None, float(values.min()), float(values.max()))
    packed = np.empty(packed_bytes(len(values), bits), np.uint8)
    number.encode(host, values, packed)
    return number.decode(host, packed, np.empty(len(values), np.float32)), number


def bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def kept_values(gradient: np.ndarray) -> dict[str, np.ndarray]:
    """The values that are sent of the strongest: elements, and frequencies."""
    spectrum = spectrum_of(gradient, 4096)
    result = {}
    for name, numbers, energy in (
        ("elements", gradient[:, None], np.abs(gradient)),
        ("frequencies", spectrum, (spectrum**2).sum(1)),
    ):
        k = round(KEPT * len(energy))
        result[name] = np.ascontiguousarray(numbers[np.argpartition(energy, -k)[-k:]].reshape(-1))
    return result


def formats(points: dict[int, list[np.ndarray]]) -> list[dict[str, Any]]:
    """The relative error of number formats on kept values."""
    rows = []
    for step, (gradient, *_) in points.items():
        for of, values in kept_values(gradient).items():
            rounded: dict[str, tuple[np.ndarray, int | None]] = {
                "float16": (values.astype(np.float16).astype(np.float32), 10),
                "bfloat16": (bfloat16(values), 7),
            }
            for bits in (16, 8, 6, 4):
                decoded, number = ranged(values, bits)
                rounded[f"range float, {bits} bits"] = decoded, number.mantissa
                rounded[f"uniform, {bits} bits"] = uniform(values, bits), None
            for name, (decoded, mantissa) in rounded.items():
                error = relative_error(values, decoded)
                rows.append({"step": step, "of": of, "format": name, "mantissa": mantissa, "error": error})
    return rows


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


def report(folder: Path, out: Path) -> None:
    """Write OUT.json, OUT.md and OUT.png."""
    points = recorded(folder)
    result: dict[str, Any] = {"steps": list(points), "elements": len(next(iter(points.values()))[0])}
    result["rows"] = errors(points) + without_transform(points)
    result["concentration"] = concentration(points)
    result["formats"] = formats(points)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(result))
    picture(result, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "report", "converge"))
    parser.add_argument("--gradients", type=Path, default=ROOT / "build/reconstruction", help="folder of the records")
    parser.add_argument("--images", type=int, default=30_000, help="to converge on, for one epoch")
    parser.add_argument("--threads", type=int, default=1, help="of the training")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/reconstruction", help="without .json")
    options = parser.parse_args()
    if options.what == "record":
        record(POINTS, options.gradients, options.threads)
    elif options.what == "converge":
        converge(options.images, options.threads)
    else:
        report(options.gradients, options.out)


if __name__ == "__main__":
    main()
