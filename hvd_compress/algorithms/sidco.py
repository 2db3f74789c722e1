"""SIDCo: threshold sparsification by statistical fits (Abdelmoniem et al., MLSys 2021, arXiv 2101.10761)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

import numpy as np

from hvd_compress.algorithms.aggregation import aggregate
from hvd_compress.algorithms.selection import CLUSTERED, design_effect, sample_size, threshold_of
from hvd_compress.algorithms.sid_thresholds import FITS, Exceeded, Tail, most_stages
from hvd_compress.compressor import compressor_dataclass
from hvd_compress.exchange import Bucket, Exchange
from hvd_compress.kernels import Float32
from hvd_compress.sparsifier import Sparsifier
from hvd_compress.validation import reject_unknown, require_choice, require_int, require_number

WINDOW = 5
"""The paper's Q: steps between adaptations (algorithm 1); here also those between looks at how clustered hits are."""
TOLERANCE = 0.2
"""The paper's epsilon: how far the count may be off before the number of stages changes."""
ROOM = 1.25
"""Capacity of a payload in units of k."""
MOST_STAGES = 32
"""Each stage halves what is left at least, and no bucket has more than 2^31 elements; every one costs a pass."""


@compressor_dataclass
class SIDCo(Sparsifier):
    """Send the elements above a threshold found by fitting a sparsity-inducing distribution to the magnitudes.

    1. Sample the magnitudes of memory + gradient: more of them where large elements are found to be clustered.
    2. Fit a distribution to the sample and take its (1 - delta_1) quantile; fit again to what exceeds that (peaks over
       threshold), until the stages' ratios multiply to ``ratio`` (section 2.4).
    3. One fused pass adds, compares with the threshold, takes out what exceeds it, and keeps at most 1.25 k: the
       largest, if there are more. What finds no room stays in the memory.
    4. Positions and values are all-gathered, or summed on their way (``aggregate``); the result is the workers' mean.

    Args:
        fit: ``"exponential"`` (SIDCo-E), ``"gamma-pareto"`` (SIDCo-GP: gamma, then generalized Pareto) or
            ``"pareto"`` (SIDCo-P: generalized Pareto throughout).
        stages: ``"auto"``: the number that fits this step's sample best, where each stage also makes good what the
            earlier ones missed; ``"adaptive"``: the paper's rule, one more or fewer when the count of the last 5 steps
            is off by more than 20 %; or a fixed number, at most 32.
        estimator: ``"sample"``: as above. ``"paper"``: the paper's estimator to the letter, for comparisons: fits to
            all elements, the closed approximation of the gamma quantile (section 2.3), no correction by counts, and
            the fit's threshold whatever it may be. ``stages`` is then ``"adaptive"`` or a number. Slow: it reads all
            elements once more, and those above the threshold in every stage.

    Where a distribution cannot describe the magnitudes at all (all equal, nearly all zero), so that the threshold
    would send nothing, less than a quarter or more than four times what it should, the sample's own quantile is taken.

    Tuning: leave ``stages="auto"``. Start with ``ratio=0.01``; for 0.001 and less add a warm-up
    (``ratio=WarmUp(0.001, every=steps_per_epoch)``). Under Adam and AdamW start with ``ratio=0.1``, or take
    ``QSGDMaxNorm(8)``. ``fit="exponential"`` is the cheapest and rarely the worst.

    >>> SIDCo(0.001, fit="pareto")
    SIDCo(ratio=0.001, fit='pareto')
    """

    name: ClassVar[str] = "sidco"
    runs_on_devices: ClassVar[bool] = True

    _: KW_ONLY
    fit: Literal["exponential", "gamma-pareto", "pareto"] = "exponential"
    stages: Literal["auto", "adaptive"] | int = "auto"
    estimator: Literal["sample", "paper"] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("fit", self.fit, FITS)
        if isinstance(self.stages, str):
            require_choice("stages", self.stages, ("auto", "adaptive"))
        else:
            require_int("stages", self.stages, 1, MOST_STAGES)
        require_choice("estimator", self.estimator, ("sample", "paper"))
        if self.estimator == "paper" and self.stages == "auto":
            raise ValueError("estimator='paper' takes stages='adaptive' or a number, got stages='auto'")

    def check_bucket_state(self, state: Mapping[str, Any], size: int) -> None:
        reject_unknown(state, ("stages", "found", "steps", "effect"), "the saved state of SIDCo's buckets")
        for key, value in state.items():
            if key == "effect":
                require_number("the saved effect", value, "from 1 to 16", lambda effect: 1 <= effect <= 16)
            else:
                bounds = {"stages": (1, MOST_STAGES), "steps": (0, WINDOW)}.get(key, (0,))
                require_int(f"the saved {key}", value, *bounds)

    def exchange(self, bucket: Bucket) -> Exchange:
        ratio, k = self.target(bucket)
        threshold, estimate = self._threshold(bucket, ratio)
        selection, indices, values = bucket.select(threshold, self.capacity(k))
        if self.stages == "adaptive":
            adapt(bucket.state, selection.found if estimate is None else estimate, k, ratio)
        return (yield from aggregate(self, bucket, k, indices, values))

    def capacity(self, k: int) -> int:
        return super().capacity(math.ceil(ROOM * k))

    def _threshold(self, bucket: Bucket, ratio: float) -> tuple[float, int | None]:
        """Return the threshold; and, when it is not the fit's, how many elements would have exceeded the fit's."""
        if self.estimator == "paper":
            return self._papers_threshold(bucket, ratio), None
        effect = bucket.state.get("effect")
        threshold, estimate, sample = self._sampled(bucket, ratio, effect or 1.0)
        if effect is None or bucket.step % WINDOW == 0:
            found = design_effect(sample, threshold)
            if found >= CLUSTERED * (effect or 1.0):
                threshold, estimate, sample = self._sampled(bucket, ratio, found)
                found = design_effect(sample, threshold)
            bucket.state["effect"] = found
        return threshold, estimate

    def _papers_threshold(self, bucket: Bucket, ratio: float) -> float:
        """Return the threshold of a fit to all elements, without what the paper does not do."""
        magnitudes, moments = bucket.sample(bucket.size)
        if not moments.finite or moments.largest == 0:
            return 0.0
        scratch = [bucket.scratch(name, len(magnitudes), np.float32) for name in ("tail", "tail of tail")]
        tail = Tail(bucket.kernels, magnitudes, moments, self.fit, ratio, *scratch, closed=True)
        return tail.fit(self._stages(bucket)).last.threshold

    def _stages(self, bucket: Bucket) -> int:
        """Return the number of stages where it does not depend on this step's elements."""
        return int(bucket.state.get("stages", 1)) if self.stages == "adaptive" else int(self.stages)

    def _sampled(self, bucket: Bucket, ratio: float, effect: float) -> tuple[float, int | None, Float32]:
        """Return what ``_threshold`` does, from a sample for this design effect; and the sample."""
        sample, moments = bucket.sample(sample_size(bucket.size, ratio, effect=effect))
        if not moments.finite or moments.largest == 0:
            return 0.0, None, sample[:0]
        # k is at least 1: of a small bucket that is more than the ratio says
        ratio = max(ratio, 1 / bucket.size)
        scratch = [bucket.scratch(name, len(sample), np.float32) for name in ("tail", "tail of tail")]
        tail = Tail(bucket.kernels, sample, moments, self.fit, ratio, *scratch)
        wanted = ratio * moments.count
        if self.stages == "auto":
            threshold, count = _best(bucket.state, tail, most_stages(ratio), wanted)
        else:
            threshold, count = tail.fit(self._stages(bucket)).last
        estimate = None
        if _error(count, wanted) > math.log(4):
            estimate = round(count * bucket.size / moments.count)
            threshold = threshold_of(bucket.kernels, sample, max(1, round(wanted)))
        return threshold, estimate, sample


def _best(state: dict[str, Any], tail: Tail, most: int, wanted: float) -> Exceeded:
    """Return the threshold of the number of stages (up to ``most``) that comes nearest to the number of sample elements
    ``wanted`` above it, and that number; try last step's number of stages first."""
    best, least = Exceeded(0.0, 0), math.inf
    enough = max(TOLERANCE / 4, 1 / math.sqrt(wanted))  # the count of a sample is no better known than that
    for stages in _nearest_first(state.get("stages", 2), most):
        found = tail.extrapolate(tail.fit(stages, corrected=True))
        off = _error(found.above, wanted)
        if off < least:
            best, least, state["stages"] = found, off, stages
        if off < enough:
            break
    return best


def _error(count: int, wanted: float) -> float:
    """Return how far a count is off, as the logarithm of a ratio."""
    return abs(math.log((count + 0.5) / (wanted + 0.5))) if count else math.inf


def _nearest_first(start: int, most: int) -> Iterator[int]:
    start = min(start, most)
    yield start
    for distance in range(1, most):
        for stages in (start + distance, start - distance):
            if 1 <= stages <= most:
                yield stages


def adapt(state: dict[str, Any], found: int, k: int, ratio: float) -> None:
    """Change the number of stages by algorithm 1: after every ``WINDOW`` steps, one fewer when too many elements were
    found, one more when too few."""
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
    state.update(found=0, steps=0, stages=min(max(stages, 1), most_stages(ratio), MOST_STAGES))
