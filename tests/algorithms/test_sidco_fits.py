"""SIDCo's thresholds against SciPy's distributions and against the paper's formulas written out in float64."""

import math

import numpy as np
import pytest
from scipy import special, stats

from hvd_compress import kernels
from hvd_compress.algorithms.sid_thresholds import FITS, Tail, exponential_quantile, most_stages, pareto_quantile
from hvd_compress.algorithms.sidco import adapt
from hvd_compress.kernels import Moments
from tests.gradients import gradient

RATIOS = (0.25, 0.01, 0.001)


def moments_of(mean: float, variance: float, n: int = 1000) -> Moments:
    return Moments(n, n * mean, n * (variance + mean**2), math.inf)


def tail_of(sample: np.ndarray, fit: str, ratio: float) -> Tail:
    sample = np.abs(sample).astype(np.float32)
    kernel_set = kernels.get()
    moments = kernel_set.sample(None, [sample], 0, len(sample), np.empty_like(sample))  # all of it
    return Tail(kernel_set, sample, moments, fit, ratio, np.empty_like(sample), np.empty_like(sample))


@pytest.mark.parametrize("ratio", [0.9, *RATIOS])
@pytest.mark.parametrize("scale", [1e-20, 0.3, 1e20])
def test_exponential_quantile(ratio: float, scale: float) -> None:
    expected = stats.expon.isf(ratio, scale=scale)
    assert exponential_quantile(moments_of(scale, scale**2), ratio) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.9, *RATIOS])
@pytest.mark.parametrize("shape", [-5.0, -1.0, -0.3, -1e-5, -1e-12, 0.0, 1e-12, 1e-5, 0.2, 0.49])
@pytest.mark.parametrize("scale", [1e-20, 0.3, 1e20])
def test_pareto_quantile(ratio: float, shape: float, scale: float) -> None:
    """From a generalized Pareto distribution's own mean and variance comes its own quantile; at shape 0 too."""
    mean, variance = stats.genpareto.stats(shape, scale=scale, moments="mv")
    expected = stats.genpareto.isf(ratio, shape, scale=scale)
    assert pareto_quantile(moments_of(float(mean), float(variance)), ratio) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", [1, 2, 5])
def test_constants(fit: str, stages: int) -> None:
    """All magnitudes equal: no division by zero, and a finite threshold."""
    threshold = tail_of(np.full(1000, 0.7), fit, 0.01).fit(stages).last.threshold
    assert math.isfinite(threshold)
    if fit != "exponential":  # a point: nothing but the value itself can be said
        assert threshold == pytest.approx(0.7, rel=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize(
    ("fit", "distribution"),
    [
        ("exponential", stats.expon(scale=0.02)),
        ("pareto", stats.expon(scale=0.02)),
        ("pareto", stats.genpareto(0.1, scale=3.0)),
        ("pareto", stats.genpareto(-0.4, scale=3.0)),
        ("gamma-pareto", stats.expon(scale=0.02)),
        ("gamma-pareto", stats.gamma(0.6, scale=5.0)),
        ("gamma-pareto", stats.gamma(2.0, scale=5.0)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dist.name}{value.args}",
)
def test_samples_of_the_distribution_itself(fit: str, distribution: object, stages: int, ratio: float) -> None:
    """Of the true distribution, the wanted fraction lies above the threshold found from 400,000 samples of it: the
    tail of an exponential is exponential, that of a Pareto Pareto, with any number of stages. The samples are drawn
    one from each of as many equally likely strata, so that they are good to a few per cent at 0.001."""
    n = 400_000
    strata = (np.arange(n) + np.random.default_rng(7).random(n)) / n
    threshold = tail_of(distribution.ppf(strata), fit, ratio).fit(stages).last.threshold
    # Minka's approximation is good to 1.5 % in the shape; the tail of a gamma is only nearly a Pareto
    tolerance = 0.12 if fit == "gamma-pareto" else 0.04
    assert distribution.sf(threshold) == pytest.approx(ratio, rel=tolerance)


def paper(sample: np.ndarray, fit: str, ratio: float, stages: int, corrected: bool, closed: bool = False) -> float:
    """Section 2.4 in plain NumPy: one fit after the other, the ratios 0.25 and then equal ones. ``closed``: the gamma
    quantile by the approximation of section 2.3."""

    def pareto(x: np.ndarray, part: float) -> float:
        mean, variance = x.mean(), x.var()
        alpha, beta = (1 - mean**2 / variance) / 2, mean * (mean**2 / variance + 1) / 2
        return 0.0 if part == 1 else beta / alpha * (part**-alpha - 1)

    x = np.abs(sample).astype(np.float32).astype(np.float64)
    parts = [ratio] if stages == 1 else [0.25] + [(ratio / 0.25) ** (1 / (stages - 1))] * (stages - 1)
    if fit == "gamma-pareto":
        positive = x[x > 0]
        s = np.log(positive.mean()) - np.log(positive).mean()
        alpha = (3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
        share = min(1, parts[0] * len(x) / len(positive))
        quantile = -np.log(share) - special.gammaln(alpha) if closed else special.gammainccinv(alpha, share)
        eta = positive.mean() / alpha * quantile
    else:
        eta = x.mean() * np.log(1 / parts[0]) if fit == "exponential" else pareto(x, parts[0])
    for j, part in enumerate(parts[1:], start=1):
        eta = float(np.float32(eta))
        excess = x[x > eta] - eta
        if len(excess) < 2:  # nothing to fit to
            break
        if corrected:
            part = min(1, ratio * len(x) / len(excess)) ** (1 / (len(parts) - j))
        eta += excess.mean() * np.log(1 / part) if fit == "exponential" else pareto(excess, part)
    return eta


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("stages", [1, 2, 3, 6])
@pytest.mark.parametrize("ratio", [0.1, 0.001])
@pytest.mark.parametrize("distribution", ["normal", "laplace", "mostly_zero", "rising", "mixed_scales"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_paper_s_formulas(fit: str, stages: int, ratio: float, distribution: str, corrected: bool) -> None:
    """``corrected``, which stages="auto" uses, shares out what is left to do after each stage, not what should be."""
    sample = gradient(distribution, 50_001, 3)
    expected = paper(sample, fit, ratio, stages, corrected)
    threshold = tail_of(sample, fit, ratio).fit(stages, corrected=corrected).last.threshold
    assert threshold == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_gamma_against_maximum_likelihood(shape: float, zeros: float) -> None:
    """Zeros are no part of the fit, but they count: the ratio is of all elements."""
    rng = np.random.default_rng(1)
    x = rng.gamma(shape, 2.0, 100_000)
    a, _, scale = stats.gamma.fit(x, floc=0)
    sample = np.concatenate([x, np.zeros(int(len(x) * zeros / (1 - zeros)))])
    expected = stats.gamma.isf(0.02 * len(sample) / len(x), a, scale=scale)
    assert tail_of(sample, "gamma-pareto", 0.02).fit(1).last.threshold == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("distribution", ["normal", "heavy_tailed", "mostly_zero"])
@pytest.mark.parametrize("exponent", [-120, 100])
def test_thresholds_scale_with_the_gradient(fit: str, distribution: str, exponent: int) -> None:
    """Nothing absolute hides in the formulas: 2**100 times the gradient has 2**100 times the threshold."""
    sample = gradient(distribution, 20_000, 3).astype(np.float64)
    small = tail_of(sample, fit, 0.01).fit(3).last.threshold
    assert tail_of(sample * 2.0**exponent, fit, 0.01).fit(3).last.threshold == pytest.approx(
        small * 2.0**exponent, rel=1e-5
    )


@pytest.mark.parametrize(
    ("ratio", "most"), [(1.0, 1), (0.6, 1), (0.5, 1), (0.25, 2), (0.2, 3), (0.1, 4), (0.01, 7), (0.001, 10), (1e-6, 20)]
)
def test_most_stages(ratio: float, most: int) -> None:
    """ceil(ln ratio / ln 1/2): no more stages than each could halve."""
    assert most_stages(ratio) == most


def test_adaptation_by_hand() -> None:
    """k = 100, at most 4 stages (ratio 0.1): means over 5 steps of 60, 79, 80, 120, 121, 40, 0, 0, 300."""
    state: dict[str, int] = {}
    seen = []
    for window in (
        [50, 60, 70, 60, 60], [79] * 5, [80] * 5, [100, 140, 120, 120, 120], [121] * 5, [40] * 5, [0] * 5, [0] * 5,
        [0, 0, 0, 0, 1500], [300] * 5, [300] * 5, [300] * 5, [300] * 5,
    ):  # fmt: skip
        before = state.get("stages", 1)
        for found in window[:-1]:
            adapt(state, found, 100, 0.1)
            assert state.get("stages", 1) == before, "only every fifth step"
        adapt(state, window[-1], 100, 0.1)
        seen.append(state["stages"])
    #       60 79 80 120 121 40  0  0  300 300 300 300 300
    assert seen == [2, 3, 3, 3, 2, 3, 4, 4, 3, 2, 1, 1, 1]
