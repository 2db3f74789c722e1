"""What sparsifiers share: a threshold from a sample, exact selection of the largest elements, and sending them."""

from __future__ import annotations

import math

import numpy as np

from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.exchange import AllGather, Bucket
from hvd_compress.kernels import LANES, Float32, Kernels, UInt32

SAMPLE_HITS = 160
"""Elements of a sample that should lie above the threshold it is to find: the threshold's count is then good to 8 %
(one standard deviation) whatever the ratio."""


CLUSTERED = 2.0
"""From this design effect on, hits are clustered, and a sample has to be larger."""


def sample_size(size: int, ratio: float, *, exact: bool = False, effect: float = 1.0) -> int:
    """Return how many of ``size`` elements to sample: enough hits, but not more than a quarter of them, unless they are
    so few that reading all of them is quick.

    ``exact``: for an exact selection of the largest. A larger sample then bounds the k-th element more tightly, and
    fewer candidates have to be sorted out. ``effect``: the ``design_effect`` of such a sample; where hits are clustered
    it takes so many times as many for the same accuracy, up to all elements.
    """
    if effect >= CLUSTERED:
        return min(math.ceil(SAMPLE_HITS * effect / ratio), size)
    enough = min(math.ceil(SAMPLE_HITS / ratio), max(size // 4, 16_384))
    return max(enough, size // 256) if exact else enough


def design_effect(sample: Float32, threshold: float) -> float:
    """Return how many times the variance of the number of elements above ``threshold`` is what it were if the elements
    were sampled one by one (Kish 1965); at least 1, at most 16.

    A sample is of whole lines, and where large elements are in rows, as in the gradient of an embedding, those of a
    line are large together.
    """
    lines = len(sample) // LANES
    if lines < 2:
        return 1.0
    hits = np.flatnonzero(sample[: lines * LANES] > np.float32(threshold))
    in_line = np.bincount(hits // LANES)  # without lines after the last that has any, which adds nothing to the sums
    share = len(hits) / (lines * LANES)
    variance = float(in_line @ in_line) / lines - (LANES * share) ** 2
    alone = LANES * share * (1 - share)
    return min(max(1.0, variance / alone), float(LANES)) if alone else 1.0


def threshold_of(kernels: Kernels, sample: Float32, rank: int) -> float:
    """Return the highest threshold that the ``rank`` largest elements of a sample (magnitudes) exceed."""
    kth = np.float32(kernels.kth_largest(sample, min(len(sample), rank)))
    return float(np.nextafter(kth, np.float32(0)))  # "exceeds" is strict: let the k-th itself through


def threshold_for(kernels: Kernels, sample: Float32, k: int, size: int) -> float:
    """Return a threshold that, going by a sample (magnitudes), ``k`` or some more of ``size`` elements exceed."""
    expected = k * len(sample) / size
    if len(sample) < size:
        expected = 1.05 * expected + 6 * math.sqrt(expected) + 8  # elements of a line are not independent
    return threshold_of(kernels, sample, math.ceil(expected))


def largest(bucket: Bucket, k: int) -> tuple[UInt32, Float32]:
    """Take the ``k`` largest non-zero elements out of ``bucket.values``: ascending indices, and values (workspaces)."""
    sample, moments = bucket.sample(sample_size(bucket.size, k / bucket.size, exact=True))
    threshold = 0.0
    if moments.finite and moments.count:
        threshold = threshold_for(bucket.kernels, sample, k, bucket.size)
    selection, indices, values = bucket.select(threshold, k)
    if selection.finite and selection.kept < k and threshold > 0:
        bucket.memory.restore(indices, values)  # the sample was too optimistic: once more, with everything
        _, indices, values = bucket.select(0.0, k)
    return indices, values


def send(bucket: Bucket, layout: SparseFormat, indices: UInt32, values: Float32, error_feedback: bool) -> AllGather:
    """Return the all-gather of these entries; what the wire rounds off goes back into the bucket's values."""
    payload = bucket.scratch("payload", layout.nbytes, np.uint8)
    # not bucket.values, after which the library looks for what is not finite: what rounding takes off a value is
    left_over = bucket.memory.values() if error_feedback else None
    layout.encode(bucket.kernels, indices, values, left_over, payload)
    return AllGather(payload)
