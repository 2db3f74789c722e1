"""The errors of compressed gradients at equal bytes, and what they are made of: the transform, and number formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import hvd_compress
from hvd_compress import FFT, QSGDMaxNorm, QSGDMaxNormMultiScale, RandKMaxNorm, TernGrad, TopK, kernels
from hvd_compress.codecs import range_float
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import packed_bytes
from hvd_compress.kernels.fourier import Transform

BUDGETS = (4, 8, 16, 32, 64)
"""So many times smaller than float32."""
SLACK = 1.01
"""Headers and padding may exceed a budget by 1 %."""
FFT_BITS = (4, 5, 6, 8, 10)
SEEDS = range(3)
"""Random compressors are run so often, each time with other random numbers."""
KEPT = 0.1
"""Fraction of the elements, or frequencies, on whose values number formats are compared."""


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
