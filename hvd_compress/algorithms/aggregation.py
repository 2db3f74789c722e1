"""From every worker's selected entries to their mean: all to all, or by way of workers that each sum a region.

``"all-gather"`` gives every worker all entries: N payloads of k to receive and to decode. ``"reduce-scatter"`` is our
own: an entry goes to the worker that owns its region (``codecs.regions``), which sums what it gets, keeps the largest
k/N, and all-gathers those. A worker sends and receives about 2 k entries, and decodes as many, whatever N is.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hvd_compress.algorithms.selection import send
from hvd_compress.codecs import header
from hvd_compress.codecs.regions import Entries, Int64
from hvd_compress.codecs.sparse import SPARSE_WIRES, SparseFormat
from hvd_compress.exchange import AllGather, AllToAll, Bucket, Exchange
from hvd_compress.kernels import Float32, Kernels, UInt32
from hvd_compress.sparsifier import PLANS, REDUCE_SCATTER, Sparsifier, scattered

Float64 = NDArray[np.float64]


def aggregate(compressor: Sparsifier, bucket: Bucket, k: int, indices: UInt32, values: Float32) -> Exchange:
    """Exchange the entries that this worker has taken out of ``bucket.values``, and return the workers' mean.

    Args:
        compressor: says how values travel, what is remembered, and which way the bucket's entries go.
        bucket: whose entries these are.
        k: the number of entries that were meant to be taken.
        indices: of the entries, ascending.
        values: of the entries, float32.
    """
    bucket.target, bucket.sent = k, len(indices)
    # inside another compressor the plan is that one's
    way = bucket.plan if bucket.plan in PLANS else compressor.way(bucket)
    if way == REDUCE_SCATTER:
        return (yield from _by_owners(compressor, bucket, k, indices, values))
    layout = _format(bucket.size, compressor.capacity(k), compressor.wire)
    gathered = yield send(bucket, layout, indices, values, compressor.error_feedback)
    return layout.decode(bucket.kernels, gathered, 1 / bucket.workers, bucket.decoded)


# a format computes its offsets once, which takes as long as a small bucket's selection
_format = functools.lru_cache(maxsize=1024)(SparseFormat)


def _by_owners(compressor: Sparsifier, bucket: Bucket, k: int, indices: UInt32, values: Float32) -> Exchange:
    kernels, workers, rank = bucket.kernels, bucket.workers, bucket.rank
    there, back = scattered(bucket.size, k, workers, compressor.wire)
    regions, positions = there.placed(indices)
    own = regions == rank  # which need not travel, and so have room
    away, crowded = _with_room(regions, np.abs(values), np.flatnonzero(~own), there.capacity)
    leaving = Entries(regions[away], positions[away], values[away])
    rows = bucket.scratch("rows", workers * there.nbytes, np.uint8).reshape(workers, -1)
    arriving = there.encode(kernels, leaving, rows)
    bucket.sent = len(indices) - len(crowded)
    if compressor.error_feedback:
        bucket.memory.restore(indices[crowded], values[crowded])
        if compressor.wire != "float32":
            kernels.restore(bucket.memory.values(), indices[away], leaving.values - arriving)
    received = there.decode(kernels, (yield AllToAll(rows)))
    # in float64, so that what is sent and what is left add up to what came in
    sums = np.bincount(received.positions, received.values, there.span).astype(np.float64)
    sums[positions[own]] += values[own]
    touched = np.flatnonzero(sums)
    means = (sums[touched] / workers).astype(np.float32)
    chosen = _largest(kernels, means, back.capacity)
    kept = Entries(np.zeros(len(chosen), np.int64), touched[chosen], means[chosen])
    payload = bucket.payload(header.NBYTES + back.nbytes)
    codec = header.REGION + SPARSE_WIRES.index(compressor.wire)
    header.write(payload, codec=codec, count=len(chosen), elements=bucket.size, capacity=back.capacity)
    sent = back.encode(kernels, kept, payload[header.NBYTES :].reshape(1, -1))
    if compressor.error_feedback:
        sums[touched[chosen]] -= sent.astype(np.float64) * workers
        _remember(bucket, there.indices(rank, touched), sums[touched])
    gathered = yield AllGather(payload)
    header.check(gathered, codec=codec, elements=bucket.size, capacity=back.capacity)
    result = back.decode(kernels, gathered[:, header.NBYTES :])
    mean = bucket.decoded
    mean[:] = 0
    kernels.restore(mean, back.indices(result.rows, result.positions), result.values)
    return mean


def _with_room(regions: Int64, magnitudes: Float32, places: Int64, capacity: int) -> tuple[Int64, Int64]:
    """Return those of the ``places`` in ``regions`` and ``magnitudes`` that a row of their region has room for, the
    largest, by region and place; and the rest, by place."""
    chosen = places[np.argsort(regions[places], kind="stable")]
    counts = np.bincount(regions[places])
    if (counts <= capacity).all():
        return chosen, places[:0]
    ranked = places[np.lexsort((-magnitudes[places], regions[places]))]
    begin = np.cumsum(counts) - counts
    over = np.arange(len(ranked)) - begin[regions[ranked]] >= capacity
    left = np.zeros(len(regions), bool)
    left[ranked[over]] = True
    return chosen[~left[chosen]], np.flatnonzero(left)


def _largest(kernels: Kernels, values: Float32, count: int) -> Int64:
    """Return the places of the ``count`` largest that are not zero, ascending; of equal ones the first."""
    magnitudes = np.abs(values)
    if len(values) <= count:
        return np.flatnonzero(magnitudes)
    least = np.float32(kernels.kth_largest(magnitudes, count))
    chosen = magnitudes > least
    equal = np.flatnonzero((magnitudes == least) & (magnitudes > 0))
    chosen[equal[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def _remember(bucket: Bucket, indices: UInt32, left: Float64) -> None:
    """Add to the memory what an owner does not send of its region's sums."""
    held = np.empty(len(indices), np.float32)
    bucket.kernels.take(bucket.memory.values(), indices, held)
    with np.errstate(over="ignore"):
        total = (held + left).astype(np.float32)
    if not np.isfinite(total).all():
        bucket.memory.finite = False  # the all-gather that follows tells the others
    bucket.kernels.restore(bucket.memory.values(), indices, total)
