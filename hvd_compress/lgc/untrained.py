"""LGC's exchanges without an autoencoder: everything (phase 1), a bucket's own top-k, and phase 2, which feeds the
trainer with the values at common indices."""

from __future__ import annotations

import numpy as np

from hvd_compress.algorithms.selection import largest, send
from hvd_compress.codecs import header
from hvd_compress.codecs.index_set import IndexSetFormat
from hvd_compress.codecs.innovations import InnovationFormat
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.exchange import AllGather, AllReduce, Array, Broadcast, Bucket, Exchange
from hvd_compress.kernels import WIRES, Float32
from hvd_compress.lgc.common_values import Settings, require_finite, take_common_values
from hvd_compress.lgc.records import RECORD_NBYTES

LARGEST = (np.inf, np.float32((2 - 2.0**-7) * 2.0**127), np.float32(65504))
"""Largest number of each of ``WIRES``; what is beyond it stays in the memory."""

VALUES = "what the workers send of the values at the common indices"

LEAST = 256
"""Values that top-k sends at least, about as many as a network packet holds: of a small last layer the ratio alone
would leave next to nothing, and that costs accuracy."""


def dense(bucket: Bucket) -> Exchange:
    """Send everything, and leave the memory empty."""
    values = bucket.values
    yield AllGather(bucket.payload(header.NBYTES))  # nothing but the flags
    sent = bucket.device_scratch("dense", bucket.size, np.float32)
    sent[:] = values
    values[:] = 0
    bucket.target = bucket.sent = bucket.size
    total = yield AllReduce(sent)
    return bucket.kernels.scaled(total, 1 / bucket.workers, bucket.decoded)


def top_k(bucket: Bucket, settings: Settings) -> Exchange:
    """Send the bucket's own largest elements."""
    k = min(max(settings.k, LEAST), bucket.size)
    indices, values = largest(bucket, k)
    layout = SparseFormat(bucket.size, -(-k // 8) * 8, settings.wire)
    bucket.target, bucket.sent = k, len(indices)
    gathered = yield send(bucket, layout, indices, values, settings.error_feedback)
    return layout.decode(bucket.kernels, gathered, 1 / bucket.workers, bucket.decoded)


def train_by_all_gather(bucket: Bucket, settings: Settings) -> Exchange:
    """Gather the values at the common indices; the trainer gets what everybody gets."""
    k, workers, learning = settings.k, bucket.workers, settings.learning
    root = bucket.step % workers
    common = yield from take_common_values(bucket, settings, root)
    n, at, wire = len(common.indices), header.NBYTES + RECORD_NBYTES, WIRES.index(settings.wire)
    control = learning.control in bucket.members
    payload = bucket.payload(at + k * (2 if wire else 4))
    if control:
        payload[header.NBYTES : at] = learning.record(bucket.step, k)
    if wire:
        words = payload[at:].view(np.uint16)
        bucket.kernels.narrow(np.clip(common.values, -LARGEST[wire], LARGEST[wire]), wire, words[:n])
        if settings.error_feedback:
            lost = common.values - _widened(bucket, words[None, :n], wire)[0]
            bucket.kernels.restore(bucket.values, common.indices, lost)
    else:
        payload[at:].view(np.float32)[:n] = common.values
    gathered = yield AllGather(payload)
    header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
    rows = np.ascontiguousarray(gathered[:, at:])
    vectors = rows.view(np.float32) if not wire else _widened(bucket, rows.view(np.uint16), wire)
    require_finite(vectors, VALUES)
    if learning.wants and not header.flags(gathered) & header.NONFINITE:
        given = np.zeros((workers, k), np.float32)
        factor = common.signs if settings.signs else np.float32(1)
        with np.errstate(over="ignore"):
            given[:, :n] = vectors[:, :n] * (factor / np.float32(common.scale))
        given = np.roll(given, -root, axis=0)  # the root, whose indices and signs these are, comes first
        learning.take(bucket.step, bucket.name, given, affordable_entries(bucket, settings))
    if control:
        size = learning.heard(gathered[:, header.NBYTES : at], bucket.step)
        learning.received((yield Broadcast(learning.chunk(size), learning.leader)), size, k)
    mean = np.zeros(n, np.float32)
    for row in vectors:
        mean += row[:n] * np.float32(1 / workers)
    return common.scattered(bucket, mean)


def train_over_mpi(bucket: Bucket, settings: Settings) -> Exchange:
    """Sum the values at the common indices; the rank that trains gets each worker's by itself."""
    k, learning = settings.k, settings.learning
    root = bucket.step % bucket.workers
    common = yield from take_common_values(bucket, settings, root)
    n, control = len(common.indices), learning.control in bucket.members
    payload = bucket.payload(header.NBYTES + (RECORD_NBYTES if control else 0))
    if control:
        payload[header.NBYTES :] = learning.record(bucket.step, k)
    gathered = yield AllGather(payload)
    header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
    size = learning.heard(gathered[:, header.NBYTES :], bucket.step) if control else 0
    if learning.passes(bucket.step) and not header.flags(gathered) & header.NONFINITE:
        vector, entries = common.normalized(settings)[0], affordable_entries(bucket, settings)
        bucket.extra_sent_bytes += learning.pass_on(bucket.step, bucket.name, vector, entries, root)
    sent = bucket.scratch("train", k, np.float32)
    sent[n:] = 0
    np.multiply(common.values, np.float32(1 / bucket.workers), out=sent[:n])  # so that the sum cannot overflow
    mean = yield AllReduce(sent)
    require_finite(mean, VALUES)
    if control:
        mean = mean.copy()  # whoever delivered it may have other uses for it by the time of the next result
        learning.received((yield Broadcast(learning.chunk(size), learning.leader)), size, k)
    return common.scattered(bucket, mean[:n])


def affordable_entries(bucket: Bucket, settings: Settings) -> int:
    """Return how many entries float16 top-k could send for the bytes that a rank sends in phase 3, at most k."""
    made, k, workers = settings.learning.architecture, settings.k, bucket.workers
    root, code = IndexSetFormat(bucket.size, k, settings.signs).nbytes, 2 * made.numbers(k)
    if made.variant == "allreduce":
        sent = root / workers + code + header.NBYTES
    else:
        sent = (root + code) / workers + InnovationFormat(k, made.innovations(k)).nbytes + header.NBYTES
    return min(k, int(sent / 4))


def _widened(bucket: Bucket, words: Array, wire: int) -> Float32:
    """Return rows of 16-bit values as float32."""
    rows = np.empty(words.shape, np.float32)
    for row, out in zip(words, rows, strict=True):
        bucket.kernels.accumulate_dense(row[None], wire, 1.0, out)
    return rows
