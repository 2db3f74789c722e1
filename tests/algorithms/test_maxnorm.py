"""The quantizers against exact expectations, with float64 arithmetic of the tests' own.

Statistical tests are bounded by Hoeffding's inequality, so that each fails by chance with a probability below 1e-12;
all of them together below 1e-9.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import Compressor, QSGDMaxNorm, QSGDMaxNormMultiScale, RandKMaxNorm, RandKMaxNormMultiScale
from hvd_compress.algorithms import maxnorm
from hvd_compress.exchange import AllReduce
from tests.gradients import gradient
from tests.recording import Recorder
from tests.simulation import Simulation

FALSE_ALARM = 1e-12
SIZE = 256
CLASSES: dict[str, Compressor] = {
    "qsgd-2": QSGDMaxNorm(2, min_numel=1),
    "qsgd-4": QSGDMaxNorm(4, min_numel=1),
    "qsgd-8": QSGDMaxNorm(8, min_numel=1),
    "qsgd-16": QSGDMaxNorm(16, min_numel=1),
    "qsgd-4-l2": QSGDMaxNorm(4, norm="l2", min_numel=1),
    "multi-4-8": QSGDMaxNormMultiScale((4, 8), min_numel=1),
    "multi-2-5-9": QSGDMaxNormMultiScale((2, 5, 9), min_numel=1),
    "multi-4-8-l2": QSGDMaxNormMultiScale((4, 8), norm="l2", min_numel=1),
    "randk-4": RandKMaxNorm(0.5, 4, error_feedback=False, min_numel=1),
    "randk-3-8": RandKMaxNormMultiScale(0.3, (3, 8), error_feedback=False, min_numel=1),
}


def levels(compressor: Compressor) -> list[int]:
    bits = compressor.bits if isinstance(compressor.bits, tuple) else (compressor.bits,)  # type: ignore[attr-defined]
    return [2 ** (b - 1) - 1 for b in bits]


def common_norm(compressor: Compressor, arrays: list[np.ndarray]) -> float:
    order = 2 if compressor.norm == "l2" else np.inf  # type: ignore[attr-defined]
    with np.errstate(over="ignore"):
        return float(np.float32(max(np.linalg.norm(a.astype(np.float64), order) for a in arrays)))


def finest(compressor: Compressor, arrays: list[np.ndarray], norm: float) -> np.ndarray:
    """The levels each element uses: the most at which it is one of the lowest scale's codes on every worker."""
    largest = np.abs(np.stack(arrays).astype(np.float64)).max(axis=0)
    lowest, *others = levels(compressor)
    chosen = np.full(largest.shape, lowest)
    for s in others:
        grown = 2.0**96 if norm < 2.0**-80 else 1.0  # float32, were there no denormals
        limit = float(np.float32(norm * grown * (lowest / s))) / grown
        chosen[largest <= limit] = s
    return chosen


def boundaries(n: int) -> np.ndarray:
    """On, just below, and just above the levels of 4 bits."""
    values = np.repeat(np.arange(-7, 8) / np.float32(7), 3).astype(np.float32)
    values[1::3] = np.nextafter(values[1::3], np.float32(-2))
    values[2::3] = np.nextafter(values[2::3], np.float32(2))
    return np.resize(np.clip(values, -1, 1), n).astype(np.float32)


def one_huge(n: int) -> np.ndarray:
    values = np.random.default_rng(8).laplace(size=n).astype(np.float32) * np.float32(1e-4)
    values[n // 2] = -1000
    return values


INPUTS = {
    "laplace": lambda n, rank: gradient("laplace", n, rank),
    "boundaries": lambda n, rank: boundaries(n) * np.float32(1 if rank % 2 == 0 else 0.5),
    "one_huge": lambda n, rank: one_huge(n),
    "denormal": lambda n, rank: gradient("denormal", n, rank),
}


ONE_OF_EACH = ("qsgd-4", "multi-4-8", "randk-4")


def often(label: str, kind: str, workers: int) -> bool:
    """Whether it is a case of every run: 2 workers with any compressor, or with any input; any number of workers."""
    if workers == 2:
        return kind == "laplace" or label in ONE_OF_EACH
    return kind == "laplace" and label == ONE_OF_EACH[0]


@pytest.mark.parametrize(
    ("label", "kind", "workers"),
    [
        pytest.param(*case, marks=() if often(*case) else pytest.mark.long)
        for case in itertools.product(CLASSES, INPUTS, [1, 2, 8, 33])
    ],
)
def test_unbiased(label: str, kind: str, workers: int) -> None:
    """Every coordinate's mean over many steps, and the mean of all coordinates' deviations."""
    compressor = CLASSES[label]
    arrays = [INPUTS[kind](SIZE, rank) for rank in range(workers)]
    exact = np.mean(np.stack(arrays).astype(np.float64), axis=0)
    sim = Simulation(compressor, workers)
    ratio = getattr(compressor, "ratio", 1.0)
    turns = math.ceil(SIZE / max(1, round(ratio * SIZE)))
    draws = max(60, 1500 // workers)
    total = np.zeros(SIZE)
    for step in range(draws * turns):
        mean = sim.step({"w": arrays})["w"]
        if step % turns == 0:  # a walk's steps depend on each other, and its first ones do not
            total += mean
    # Each worker's part is one of two neighbouring levels; a random coordinate is zero or size/k times as large.
    norm = common_norm(compressor, arrays)
    if turns == 1:
        width = norm / finest(compressor, arrays, norm)
        independent = draws * workers  # draws of every worker
    else:
        scale = SIZE / (SIZE // turns)
        width = np.full(SIZE, scale * (np.abs(np.stack(arrays)).max() + norm / levels(compressor)[0]))
        independent = draws  # the coordinates are common
    rounding = 2.0**-22 * norm + 2.0**-149
    bound = width * math.sqrt(math.log(2 * SIZE / FALSE_ALARM) / (2 * independent)) + rounding
    deviation = total / draws - exact
    assert (np.abs(deviation) <= bound).all(), (np.abs(deviation) / bound).max()
    if turns == 1:
        count = independent * SIZE
        bound_of_all = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * count))
        assert abs((deviation / width).mean()) <= bound_of_all + (rounding / width).max()


@pytest.mark.parametrize(
    ("label", "workers"),
    [
        pytest.param(label, workers, marks=() if often(label, "laplace", workers) else pytest.mark.long)
        for label in CLASSES
        if not label.startswith("randk")
        for workers in (1, 2, 8)
    ],
)
def test_variance(label: str, workers: int) -> None:
    """The squared error is that of rounding between two levels, exactly, and within the paper's bound."""
    compressor = CLASSES[label]
    arrays = [gradient("laplace", SIZE, 5, rank) for rank in range(workers)]
    stack = np.stack(arrays).astype(np.float64)
    exact = stack.mean(axis=0)
    norm = common_norm(compressor, arrays)
    width = norm / finest(compressor, arrays, norm)
    parts = np.abs(stack) / width % 1
    variance = (width**2 * parts * (1 - parts)).sum(axis=0) / workers**2
    sim = Simulation(compressor, workers)
    draws = 1500
    squared = np.zeros(SIZE)
    for _ in range(draws):
        squared += (sim.step({"w": arrays})["w"] - exact) ** 2 / width**2
    measured, expected = squared.sum() / draws, (variance / width**2).sum()
    # a squared error is within [0, width**2]; independent over steps and coordinates
    bound = math.sqrt(SIZE * math.log(2 / FALSE_ALARM) / (2 * draws))
    assert abs(measured - expected) <= bound
    # QSGD (Alistarh et al. 2017, lemma 3.1), of which the paper's theorem is the case with a common norm, for N workers
    s, euclidean = levels(compressor)[0], float(np.linalg.norm(stack, axis=1).max())
    worst = min(SIZE / s**2, math.sqrt(SIZE) / s) * max(norm, euclidean) ** 2 / workers
    assert variance.sum() <= worst


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 8, 31, 33])
@pytest.mark.parametrize("bits", [(4, 8), (3, 6, 9), tuple(range(2, 17))])
def test_scale_is_the_minimum_over_workers(bits: tuple[int, ...], workers: int) -> None:
    """Elements at, below and above every limit, which of the workers whatever: the mean times N is a whole number of
    the steps of the scale that they should use, and within one step of the exact value per worker."""
    compressor = QSGDMaxNormMultiScale(bits, min_numel=1)
    size = 700
    rng = np.random.default_rng(workers)
    arrays = [rng.standard_normal(size).astype(np.float32) * np.float32(1e-6) for _ in range(workers)]
    lowest = 2 ** (bits[0] - 1) - 1
    limits = [np.float32(lowest / (2 ** (b - 1) - 1)) for b in bits[1:]]
    special = [np.float32(1)]
    for limit in limits:
        special += [limit, np.nextafter(limit, np.float32(0)), np.nextafter(limit, np.float32(1))]
    for index in range(size // 2):
        arrays[rng.integers(workers)][index] = special[index % len(special)] * rng.choice([-1, 1])
    arrays[0][0] = 1
    expected = finest(compressor, arrays, 1.0)
    assert len(np.unique(expected)) == len(bits)
    mean = Simulation(compressor, workers).step({"w": arrays})["w"].astype(np.float64)
    codes = mean * workers * expected
    np.testing.assert_allclose(codes, np.rint(codes), atol=2e-3 if bits[-1] > 12 else 1e-4)
    exact = np.stack(arrays).astype(np.float64).sum(axis=0) * expected
    assert (np.abs(codes - exact) < workers).all()


def test_scales_do_not_depend_on_the_draw(recorder: Recorder) -> None:
    arrays = [gradient("laplace", 3000, rank) for rank in range(3)]
    marks, codes = [], []
    for seed in (0, 1):
        recorder.clear()
        Simulation(QSGDMaxNormMultiScale(seed=seed), 3).step({"w": arrays})
        sent = [post.array.tobytes() for post in recorder.of(0)]
        assert len(sent) == 3
        marks.append(sent[:2])
        codes.append(sent[2])
    assert marks[0] == marks[1]
    assert codes[0] != codes[1]


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("label", ["qsgd-4", "qsgd-16", "multi-4-8", "randk-4"])
@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -81, -80, -79, 0, 100, 126])
def test_any_magnitude(label: str, norm: str, exponent: int) -> None:
    """Within a level of the exact mean, from denormals to the end of float32."""
    compressor = dataclasses.replace(CLASSES[label], norm=norm)
    rng = np.random.default_rng(exponent + 200)
    arrays = [np.ldexp(rng.uniform(-1, 1, 16), exponent).astype(np.float32) for _ in range(2)]
    largest = common_norm(compressor, arrays)
    mean = Simulation(compressor, 2).step({"w": arrays})["w"].astype(np.float64)
    exact = np.mean(np.stack(arrays).astype(np.float64), axis=0)
    scale = 2 if label.startswith("randk") else 1
    if np.isnan(mean).all() or scale == 1:  # the norm of random coordinates is not the norm of all
        assert np.isnan(mean).all() == (scale * largest > float(np.finfo(np.float32).max))
    if np.isnan(mean).all():
        return
    assert np.isfinite(mean).all()
    used = mean != 0 if scale == 2 else np.full(16, True)
    step = scale * largest / levels(compressor)[0]
    assert (np.abs(mean - scale * exact)[used] <= step * (1 + 1e-5) + 2.0**-149).all()


@pytest.mark.parametrize("label", CLASSES)
def test_zero_gives_zero(label: str) -> None:
    for compressor in (CLASSES[label], dataclasses.replace(CLASSES[label], norm="l2")):
        mean = Simulation(compressor, 3).step({"w": [np.zeros(50, np.float32)] * 3})["w"]
        assert not mean.any()


def test_norm_beyond_float32_is_not_finite() -> None:
    """Every element is finite, and so is the largest; the Euclidean norm is not a float32."""
    arrays = [np.full(64, 3e38, np.float32)] * 2
    assert np.isfinite(Simulation(QSGDMaxNorm(min_numel=1), 2).step({"w": arrays})["w"]).all()
    # the Euclidean norm is beyond float32, but no element is
    mean = Simulation(QSGDMaxNorm(16, norm="l2", min_numel=1), 2).step({"w": arrays})["w"]
    np.testing.assert_allclose(mean, 3e38, rtol=1e-4)
    limit = np.full(64, np.finfo(np.float32).max)
    for norm in ("max", "l2"):
        assert np.isfinite(Simulation(QSGDMaxNorm(norm=norm, min_numel=1), 3).step({"w": [limit] * 3})["w"]).all()


@given(
    size=st.integers(1, 3000),
    ratio=st.floats(0.001, 1),
    error_feedback=st.booleans(),
    workers=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_each_coordinate_once_in_a_walk(size: int, ratio: float, error_feedback: bool, workers: int, seed: int) -> None:
    """In ceil(d/K) steps, K in each but the last; the next walk takes another way."""
    k = max(1, round(ratio * size))
    turns = -(-size // k)
    compressor = RandKMaxNorm(ratio, 16, error_feedback=error_feedback, min_numel=1, seed=seed)
    sim = Simulation(compressor, workers)
    ones = [np.ones(size, np.float32)] * workers
    walks = []
    for _ in range(2):
        found = []
        for turn in range(min(turns, 40)):
            sent = np.flatnonzero(sim.step({"w": ones})["w"])
            assert len(sent) == (k if turn < turns - 1 else size - k * (turns - 1))
            found.append(sent.tolist())
        walks.append(found)
        everything = [i for part in found for i in part]
        assert len(set(everything)) == len(everything)
        if turns <= 40:
            assert sorted(everything) == list(range(size))
        else:
            return
    if turns > 1 and size > 30 and k > 5:
        assert walks[0] != walks[1]


def test_random_coordinates_without_memory_are_scaled() -> None:
    """Over one walk the means add up to the gradient times its number of steps, to the precision of 16 bits."""
    size, workers = 1000, 3
    arrays = [gradient("laplace", size, rank) for rank in range(workers)]
    sim = Simulation(RandKMaxNorm(0.1, 16, error_feedback=False), workers)
    total = sum(sim.step({"w": arrays})["w"].astype(np.float64) for _ in range(10))
    np.testing.assert_allclose(total / 10, np.mean(arrays, axis=0, dtype=np.float64), atol=1e-3)


def test_the_ratio_is_what_is_sent() -> None:
    """Not the next smaller 1/n: 0.9 in one step and the other tenth in the next."""
    for ratio, counts in ((0.9, [900, 100]), (0.6, [600, 400]), (0.3, [300, 300, 300, 100]), (1.0, [1000])):
        sim = Simulation(RandKMaxNorm(ratio, 16, error_feedback=True, min_numel=1), 1)
        sent = [np.count_nonzero(sim.step({"w": [np.ones(1000, np.float32)]})["w"]) for _ in range(2 * len(counts))]
        assert sent == 2 * counts
        achieved = sim.compressors[0].stats()["total"]["achieved"]
        assert achieved == pytest.approx(1000 / (len(counts) * counts[0]))


def test_random_coordinates_with_memory() -> None:
    """The memory holds the coordinates that were not sent, bit for bit, and nothing of the others."""
    sim = Simulation(RandKMaxNorm(0.2, 4, error_feedback=True), 1)
    held = np.zeros(2000, np.float32)
    for step in range(12):
        a = held + gradient("laplace", 2000, step)
        mean = sim.step({"w": [a - held]})["w"]
        held = sim.compressors[0].state_dict()["memory"]["w"]["residual"]
        kept = held != 0
        np.testing.assert_array_equal(held[kept], a[kept])
        assert np.count_nonzero(~kept) == 400
        assert not mean[kept].any()


@pytest.mark.parametrize(
    "compressor",
    [
        RandKMaxNorm(0.1, 2, error_feedback=True),
        RandKMaxNorm(0.1, 4, norm="l2", error_feedback=True),
        RandKMaxNormMultiScale(0.1, (2, 4), error_feedback=True),
        RandKMaxNormMultiScale(0.1, (3, 8), norm="l2", error_feedback=True),
    ],
    ids=repr,
)
def test_the_memory_is_bounded(compressor: Compressor) -> None:
    """2,000 steps, 200 walks: it holds the gradients since a coordinate was sent last, 4.5 on average after a walk."""
    size, workers, rng = 2000, 2, np.random.default_rng(1)
    sim = Simulation(compressor, workers)
    for step in range(1, 2001):
        sim.step({"w": list(rng.standard_normal((workers, size), np.float32))})
        if step % 500 == 0:
            for worker in sim.compressors:
                held = np.concatenate([arrays["residual"] for arrays in worker.state_dict()["memory"].values()])
                assert np.sqrt(np.mean(held.astype(np.float64) ** 2)) == pytest.approx(math.sqrt(4.5), rel=0.1)


def test_a_skipped_step_is_not_a_turn() -> None:
    """The walk goes on where it was: with a step skipped, the others still send every coordinate once."""
    sim = Simulation(RandKMaxNorm(0.25, 16), 2)
    sent = []
    for step in range(5):
        arrays = [np.ones(1200, np.float32) for _ in range(2)]
        if step == 2:
            arrays[1][3] = np.inf
        mean = sim.step({"w": arrays})["w"]
        if step == 2:
            assert np.isnan(mean).all()
        else:
            sent += np.flatnonzero(mean).tolist()
    assert sorted(sent) == list(range(1200))


@pytest.mark.parametrize("workers", [2, 5])
def test_norm_is_one_number_and_codes_are_as_documented(workers: int, recorder: Recorder) -> None:
    size = 10_000
    Simulation(QSGDMaxNorm(4), workers).step({"w": [gradient("normal", size, rank) for rank in range(workers)]})
    norm, codes = recorder.of(0)
    assert (norm.kind, norm.detail, norm.array.size) == (AllReduce, "max", 1)
    width = math.ceil(math.log2(2 * 7 * workers + 1))
    lanes = {np.dtype(np.int32): 32 // width, np.dtype(np.int64): 64 // width}[codes.array.dtype]
    best = min(4 / (32 // width), 8 / (64 // width))
    assert codes.array.itemsize / lanes == best
    assert codes.detail == "sum"
    assert codes.array.nbytes <= (size + 16 * lanes) * best


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QSGDMaxNorm(1), "bits"),
        (lambda: QSGDMaxNorm(17), "from 2 to 16"),
        (lambda: QSGDMaxNorm(4.0), "int"),  # type: ignore[arg-type]
        (lambda: QSGDMaxNorm(True), "int"),
        (lambda: QSGDMaxNorm(norm="l1"), "norm"),
        (lambda: QSGDMaxNormMultiScale((4,)), "two or more"),
        (lambda: QSGDMaxNormMultiScale((8, 4)), "ascend"),
        (lambda: QSGDMaxNormMultiScale((4, 4)), "ascend"),
        (lambda: QSGDMaxNormMultiScale(4), "two or more"),  # type: ignore[arg-type]
        (lambda: QSGDMaxNormMultiScale((4, 17)), "from 2 to 16"),
        (lambda: RandKMaxNorm(0.0), "ratio"),
        (lambda: RandKMaxNormMultiScale(0.1, (4, 2)), "ascend"),
        (lambda: RandKMaxNorm(error_feedback=1), "error_feedback"),  # type: ignore[arg-type]
    ],
)
def test_arguments(make: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        make()


@pytest.mark.parametrize(
    ("make", "warns"),
    [
        (lambda: QSGDMaxNorm(4, norm="l2"), True),
        (lambda: QSGDMaxNorm(4), False),
        (lambda: QSGDMaxNorm(8, norm="l2"), False),
        (lambda: QSGDMaxNormMultiScale((2, 4), norm="l2"), True),
        (lambda: QSGDMaxNormMultiScale((4, 8), norm="l2"), False),
    ],
)
def test_few_bits_and_a_large_norm(make: Any, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    maxnorm._warn_of_noise.cache_clear()
    make()
    make()
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warns else [])
    assert 'norm="max" trains better' in caplog.text or not warns
