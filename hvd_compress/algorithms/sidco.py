"""SIDCo: threshold sparsification by statistical fits (Abdelmoniem et al., MLSys 2021, arXiv 2101.10761)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from hvd_compress.algorithms.topk import sample_size, send
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.compressor import Sparsifier
from hvd_compress.exchange import Bucket, Exchange
from hvd_compress.kernels import Float32, Kernels, Moments

FITS = ("exponential", "gamma-pareto", "pareto")
FIRST_RATIO = 0.25
"""The paper's ratio of the first of several stages (section 2.4)."""
WINDOW = 5
"""The paper's Q: steps between adaptations (algorithm 1)."""
TOLERANCE = 0.2
"""The paper's epsilon: how far the count may be off before the number of stages changes."""
ROOM = 1.25
"""Capacity of a payload in units of k."""


@dataclass(frozen=True, eq=False, repr=False)
class SIDCo(Sparsifier):
    """Send the elements above a threshold found by fitting a sparsity-inducing distribution to the magnitudes.

    1. Sample the magnitudes of memory + gradient.
    2. Fit a distribution to the sample and take its (1 - delta_1) quantile; fit again to what exceeds that (peaks over
       threshold), until the stages' ratios multiply to ``ratio`` (section 2.4).
    3. One fused pass adds, compares with the threshold, takes out what exceeds it, and keeps at most 1.25 k: the
       largest, if there are more. What finds no room stays in the memory.
    4. Positions and values are all-gathered; the mean of the workers' payloads is the result.

    Args:
        fit: ``"exponential"`` (SIDCo-E), ``"gamma-pareto"`` (SIDCo-GP: gamma, then generalized Pareto) or
            ``"pareto"`` (SIDCo-P: generalized Pareto throughout).
        stages: ``"auto"``: the number that fits this step's sample best, where each stage also makes good what the
            earlier ones missed; ``"adaptive"``: the paper's rule, one more or fewer when the count of the last 5 steps
            is off by more than 20 %; or a fixed number.

    Where a distribution cannot describe the magnitudes at all (all equal, nearly all zero), so that the threshold
    would send nothing, less than a quarter or more than four times what it should, the sample's own quantile is taken.

    Tuning: leave ``stages="auto"``. Start with ``ratio=0.01``; for 0.001 and less add a warm-up
    (``ratio=WarmUp(0.001, every=steps_per_epoch)``). ``fit="exponential"`` is the cheapest and rarely the worst.

    >>> SIDCo(0.001, fit="pareto")
    SIDCo(ratio=0.001, fit='pareto')
    """

    name: ClassVar[str] = "sidco"

    _: KW_ONLY
    fit: str = "exponential"
    stages: str | int = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_choice("fit", self.fit, FITS)
        if isinstance(self.stages, str):
            self.require_choice("stages", self.stages, ("auto", "adaptive"))
        else:
            self.require_int("stages", self.stages, 1)

    def exchange(self, bucket: Bucket) -> Exchange:
        ratio, k = self.target(bucket)
        capacity = -(-math.ceil(ROOM * k) // 8) * 8
        threshold, estimate = self._threshold(bucket, ratio)
        selection, indices, values = bucket.select(threshold, capacity)
        if self.stages == "adaptive":
            _adapt(bucket.state, selection.found if estimate is None else estimate, k, ratio)
        layout = SparseFormat(bucket.size, capacity, self.wire)
        bucket.target, bucket.sent = k, len(indices)
        gathered = yield send(bucket, layout, indices, values, self.error_feedback)
        return layout.decode(bucket.kernels, gathered, 1 / bucket.workers, bucket.decoded)

    def _threshold(self, bucket: Bucket, ratio: float) -> tuple[float, int | None]:
        """The threshold; and, when it is not the fit's, how many elements would have exceeded the fit's."""
        sample, moments = bucket.sample(sample_size(bucket.size, ratio))
        if not moments.finite or moments.largest == 0:
            return 0.0, None
        scratch = [bucket.scratch(name, len(sample), np.float32) for name in ("tail", "tail of tail")]
        tail = Tail(bucket.kernels, sample, moments, *scratch)
        # k is at least 1: of a small bucket that is more than the ratio says
        ratio = max(ratio, 1 / bucket.size)
        wanted = ratio * moments.count
        if self.stages == "auto":
            threshold, count = self._best(bucket.state, tail, ratio, wanted)
        else:
            stages = bucket.state.get("stages", 1) if self.stages == "adaptive" else int(self.stages)
            threshold, count = tail.threshold(self.fit, ratio, stages)
        if _error(count, wanted) > math.log(4):
            rank = min(moments.count, max(1, round(wanted)))
            kth = np.float32(bucket.kernels.kth_largest(sample, rank))
            return float(np.nextafter(kth, np.float32(0))), round(count * bucket.size / moments.count)
        return threshold, None

    def _best(self, state: dict[str, Any], tail: Tail, ratio: float, wanted: float) -> tuple[float, int]:
        """The threshold of the number of stages that comes nearest to the number of sample elements ``wanted`` above
        it, and that number; tries last step's number of stages first."""
        best, least = (0.0, 0), math.inf
        enough = max(TOLERANCE / 4, 1 / math.sqrt(wanted))  # the count of a sample is no better known than that
        for stages in _nearest_first(state.get("stages", 2), most_stages(ratio)):
            tail.threshold(self.fit, ratio, stages, corrected=True)
            found = tail.extrapolate(ratio)
            off = _error(found[1], wanted)
            if off < least:
                best, least, state["stages"] = found, off, stages
            if off < enough:
                break
        return best


def _error(count: int, wanted: float) -> float:
    """How far a count is off, as the logarithm of a ratio."""
    return abs(math.log((count + 0.5) / (wanted + 0.5))) if count else math.inf


class Tail:
    """Thresholds from a sample of magnitudes, by fits to it and to its tail (section 2).

    ``sample`` is not changed; the two scratch arrays (as long) are overwritten.
    """

    def __init__(
        self, kernels: Kernels, sample: Float32, moments: Moments, first_scratch: Float32, scratch: Float32
    ) -> None:
        self._kernels = kernels
        self._sample = sample
        self._moments = moments
        self._first_scratch = first_scratch
        self._scratch = scratch
        self._first: tuple[float, Moments] | None = None
        self._last = (0.0, 0), (0.0, 0)

    def threshold(self, fit: str, ratio: float, stages: int, *, corrected: bool = False) -> tuple[float, int]:
        """The threshold that ``stages`` stages of ``fit`` put ``ratio`` of the elements above, and how many elements of
        the sample really are above it.

        ``corrected``: after each stage the ratios of the others are chosen anew, equal ones, from the fraction that
        really lies above its threshold instead of the one that should: each makes good what the earlier ones missed.
        """
        if stages == 1:
            threshold = self._quantile(fit, ratio)
            count = self._kernels.exceedances(self._sample, threshold, self._scratch).count
            self._last = (0.0, 0), (threshold, count)
            return threshold, count
        first = max(ratio, FIRST_RATIO)
        if self._first is None:  # the same for any number of stages
            threshold = self._quantile(fit, first)
            self._first = threshold, self._kernels.exceedances(self._sample, threshold, self._first_scratch)
        threshold, moments = self._first
        rest = self._first_scratch[: moments.count]
        step = (ratio / first) ** (1 / (stages - 1))
        lower = threshold, moments.count
        for left in range(stages - 1, 0, -1):
            if moments.count < 2:
                break
            if corrected:
                step = min(1.0, ratio * len(self._sample) / moments.count) ** (1 / left)
            lower = threshold, moments.count
            threshold += (exponential_quantile if fit == "exponential" else pareto_quantile)(moments, step)
            moments = self._kernels.exceedances(rest, threshold, self._scratch)
            rest = self._scratch[: moments.count]
        self._last = lower, (threshold, moments.count)
        return threshold, moments.count

    def extrapolate(self, ratio: float) -> tuple[float, int]:
        """The threshold of the last call, moved to where ``ratio`` of the sample should lie above it: along the
        exponential through the counts above its last two stages' thresholds; and the count there."""
        (low, more), (threshold, count) = self._last
        if self._first is None or not more > count > 0:
            return threshold, count
        slope = (threshold - low) / math.log(more / count)
        threshold = max(threshold + slope * math.log(count / (ratio * len(self._sample))), self._first[0])
        rest = self._first_scratch[: self._first[1].count]
        return threshold, self._kernels.exceedances(rest, threshold, self._scratch).count

    def _quantile(self, fit: str, ratio: float) -> float:
        if fit == "exponential":
            return exponential_quantile(self._moments, ratio)
        if fit == "pareto":
            return pareto_quantile(self._moments, ratio)
        return self._gamma_quantile(ratio)

    def _gamma_quantile(self, ratio: float) -> float:
        """Section 2.3: ``s = ln(mean) - mean(ln)``, zeros excluded; the shape by Minka's closed approximation."""
        from scipy.special import gammainccinv

        positive, logs = self._kernels.log_sum(self._sample)
        if positive == 0:
            return 0.0
        mean = self._moments.total / positive
        s = math.log(mean) - logs / positive
        if s < 1e-9:  # all equal: the distribution is a point
            return mean
        shape = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
        # the zeros are no part of the distribution, so of the others a larger share must lie above
        share = min(1.0, ratio * self._moments.count / positive)
        return float(mean / shape * gammainccinv(shape, share))


def exponential_quantile(moments: Moments, ratio: float) -> float:
    """Section 2.1: of an exponential distribution with this mean, ``ratio`` lies above ``mean * ln(1/ratio)``."""
    return moments.total / moments.count * math.log(1 / ratio)


def pareto_quantile(moments: Moments, ratio: float) -> float:
    """Section 2.2: generalized Pareto distribution at location 0, fitted by moments.

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


def most_stages(ratio: float) -> int:
    """The largest useful number of stages, ``ceil(ln ratio / ln 1/2)`` (algorithm 1)."""
    return max(1, math.ceil(math.log(ratio) / math.log(0.5)))


def _nearest_first(start: int, most: int) -> Iterator[int]:
    start = min(start, most)
    yield start
    for distance in range(1, most):
        for stages in (start + distance, start - distance):
            if 1 <= stages <= most:
                yield stages


def _adapt(state: dict[str, Any], found: int, k: int, ratio: float) -> None:
    """Algorithm 1: after every ``WINDOW`` steps, one stage fewer when too many were found, one more when too few."""
    state["found"] = state.get("found", 0) + found
    state["steps"] = state.get("steps", 0) + 1
    if state["steps"] < WINDOW:
        return
    mean = state["found"] / WINDOW
    stages = state.get("stages", 1)
    if mean > (1 + TOLERANCE) * k:
        stages -= 1
    elif mean < (1 - TOLERANCE) * k:
        stages += 1
    state.update(found=0, steps=0, stages=min(max(stages, 1), most_stages(ratio)))
