"""SIDCo's thresholds: fits of sparsity-inducing distributions to magnitudes and to their tail (section 2 of
Abdelmoniem et al., MLSys 2021, arXiv 2101.10761)."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from hvd_compress.kernels import Float32, Kernels, Moments

FITS = ("exponential", "gamma-pareto", "pareto")
FIRST_RATIO = 0.25
"""The paper's ratio of the first of several stages (section 2.4)."""


def exponential_quantile(moments: Moments, ratio: float) -> float:
    """Return what ``ratio`` of an exponential distribution with this mean exceeds: ``mean * ln(1/ratio)`` (section
    2.1)."""
    return moments.total / moments.count * math.log(1 / ratio)


def pareto_quantile(moments: Moments, ratio: float) -> float:
    """Return what ``ratio`` of a generalized Pareto distribution at location 0, fitted by moments, exceeds (2.2).

    ``shape = (1 - mean^2/var) / 2``, ``scale = mean (mean^2/var + 1) / 2``; ``shape -> 0`` is the exponential.
    """
    mean = moments.total / moments.count
    variance = moments.squares / moments.count - mean * mean
    if variance <= 1e-12 * mean * mean:  # all equal: the limit is a point at the mean
        return mean
    odds = mean * mean / variance
    shape, scale = (1 - odds) / 2, mean * (odds + 1) / 2
    log = math.log(1 / ratio)
    return scale * (math.expm1(shape * log) / shape if abs(shape) > 1e-9 else log)


def gamma_quantile(moments: Moments, positive: int, logarithms: float, ratio: float, *, closed: bool = False) -> float:
    """Return what ``ratio`` of all elements exceed if the ``positive`` of them that are not zero, whose logarithms sum
    to ``logarithms``, are gamma distributed (section 2.3).

    ``s = ln(mean) - mean(ln)``, zeros excluded; the shape by Minka's closed approximation. ``closed``: the quantile by
    the paper's, ``-scale (ln ratio + ln Gamma(shape))``, which is good for small ratios.
    """
    from scipy.special import gammainccinv, gammaln

    if positive == 0:
        return 0.0
    mean = moments.total / positive
    s = math.log(mean) - logarithms / positive
    if s < 1e-9:  # all equal: the distribution is a point
        return mean
    shape = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    # the zeros are no part of the distribution, so of the others a larger share must lie above
    share = min(1.0, ratio * moments.count / positive)
    if closed:
        return max(0.0, float(-mean / shape * (math.log(share) + gammaln(shape))))
    return float(mean / shape * gammainccinv(shape, share))


def most_stages(ratio: float) -> int:
    """Return the largest useful number of stages, ``ceil(ln ratio / ln 1/2)`` (algorithm 1)."""
    return max(1, math.ceil(math.log(ratio) / math.log(0.5)))


class Exceeded(NamedTuple):
    """A threshold, and how many elements of the sample exceed it."""

    threshold: float
    above: int


class Staged(NamedTuple):
    """What the stages of a fit arrived at."""

    last: Exceeded
    before: Exceeded | None
    """The stage before the last; None if there is one stage."""


class Tail:
    """Thresholds that ``ratio`` of the elements exceed, from a sample of magnitudes, by fits to it and to its tail.

    ``sample`` is not changed; the two scratch arrays (as long) are overwritten. ``closed`` as in ``gamma_quantile``.
    """

    def __init__(
        self,
        kernels: Kernels,
        sample: Float32,
        moments: Moments,
        fit: str,
        ratio: float,
        first_scratch: Float32,
        scratch: Float32,
        *,
        closed: bool = False,
    ) -> None:
        self._kernels = kernels
        self._sample = sample
        self._moments = moments
        self._fit = fit
        self._ratio = ratio
        self._first_scratch = first_scratch
        self._scratch = scratch
        self._closed = closed

    def fit(self, stages: int, *, corrected: bool = False) -> Staged:
        """Fit in so many stages (section 2.4).

        ``corrected``: after each stage the ratios of the others are chosen anew, equal ones, from the fraction that
        really lies above its threshold instead of the one that should: each makes good what the earlier ones missed.
        """
        if stages == 1:
            threshold = self._quantile(self._ratio)
            count = self._kernels.exceedances(self._sample, threshold, self._scratch).count
            return Staged(Exceeded(threshold, count), None)
        threshold, moments = self._first
        rest = self._first_scratch[: moments.count]
        step = (self._ratio / self._first_ratio) ** (1 / (stages - 1))
        quantile = exponential_quantile if self._fit == "exponential" else pareto_quantile
        last = before = Exceeded(threshold, moments.count)
        for left in range(stages - 1, 0, -1):
            if moments.count < 2:
                break
            if corrected:
                step = min(1.0, self._ratio * len(self._sample) / moments.count) ** (1 / left)
            threshold += quantile(moments, step)
            moments = self._kernels.exceedances(rest, threshold, self._scratch)
            rest = self._scratch[: moments.count]
            before, last = last, Exceeded(threshold, moments.count)
        return Staged(last, before)

    def extrapolate(self, staged: Staged) -> Exceeded:
        """Move a threshold to where ``ratio`` of the sample should lie above it: along the exponential through the
        counts above the last two stages' thresholds."""
        last, before = staged
        if before is None or not before.above > last.above > 0:
            return last
        slope = (last.threshold - before.threshold) / math.log(before.above / last.above)
        first, moments = self._first
        threshold = last.threshold + slope * math.log(last.above / (self._ratio * len(self._sample)))
        threshold = max(threshold, first)
        rest = self._first_scratch[: moments.count]
        return Exceeded(threshold, self._kernels.exceedances(rest, threshold, self._scratch).count)

    @property
    def _first_ratio(self) -> float:
        return max(self._ratio, FIRST_RATIO)

    @cached_property
    def _first(self) -> tuple[float, Moments]:
        """Return the first of several stages, the same for any number; the first scratch has what exceeds it."""
        threshold = self._quantile(self._first_ratio)
        return threshold, self._kernels.exceedances(self._sample, threshold, self._first_scratch)

    def _quantile(self, ratio: float) -> float:
        if self._fit == "exponential":
            return exponential_quantile(self._moments, ratio)
        if self._fit == "pareto":
            return pareto_quantile(self._moments, ratio)
        return gamma_quantile(self._moments, *self._kernels.log_sum(self._sample), ratio, closed=self._closed)
