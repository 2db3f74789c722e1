"""The values at the indices that all workers have in common in a step: those of a root's largest elements."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hvd_compress.algorithms.selection import largest
from hvd_compress.codecs.index_set import IndexSetFormat
from hvd_compress.exchange import Array, Broadcast, Bucket, Collective
from hvd_compress.kernels import CorruptPayload, Float32, UInt32
from hvd_compress.lgc.learning import Learning

CLIP = 2.0**14
"""Largest magnitude, after normalization, that the autoencoder gets to see."""

ENERGIES = 8
"""Bytes in which a worker says what its round trip loses."""


@dataclass(frozen=True)
class Settings:
    """What an exchange has to know of its compressor."""

    learning: Learning
    k: int
    """The number of common indices in this step."""
    signs: bool
    wire: str
    error_feedback: bool


class CommonValues(NamedTuple):
    """One worker's values at the common indices; they have left the bucket's."""

    indices: UInt32
    signs: Float32
    """Of the root's values."""
    values: Float32
    scale: float
    rest: Array
    """What the root sent besides."""

    def normalized(self, settings: Settings) -> Float32:
        """Return the values as the autoencoder gets them: float32 ``(1, k)``."""
        vector = np.zeros((1, settings.k), np.float32)
        n = len(self.values)
        with np.errstate(over="ignore"):
            vector[0, :n] = self.values * np.float32(1 / self.scale)
        if settings.signs:
            vector[0, :n] *= self.signs
        return np.clip(vector, -CLIP, CLIP, out=vector)

    def restored(self, settings: Settings, vector: Float32) -> Float32:
        """Undo ``normalized``: return float32 values, as many as there are indices."""
        decoded = np.clip(vector[: len(self.indices)], -CLIP, CLIP)
        if settings.signs:
            decoded *= self.signs
        most = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            return np.clip(decoded * np.float32(self.scale), -most, most)

    def energies(self, lost: Float32) -> Float32:
        """Return the energy of what a round trip loses, and of the values: float32, in units of the scale."""
        squares = [float(np.square(part / self.scale, dtype=np.float64).sum()) for part in (lost, self.values)]
        return np.minimum(squares, 1e30).astype(np.float32)

    def scattered(self, bucket: Bucket, values: Float32) -> Float32:
        """Return the mean of a bucket that has these values at the common indices, and zeros elsewhere."""
        mean = bucket.decoded
        mean[:] = 0
        bucket.kernels.restore(mean, self.indices, values)
        return mean


def read_energies(payloads: Array) -> Float32:
    """Return what ``CommonValues.energies`` told of every worker, float32 ``(workers, 2)``, from the ``ENERGIES`` bytes
    of each.

    Raises:
        CorruptPayload: one is negative or not finite.
    """
    energies: Float32 = np.ascontiguousarray(payloads).view(np.float32)
    if not (np.isfinite(energies).all() and (energies >= 0).all()):
        raise CorruptPayload("the energy of a worker's values, or of what it loses of them, is negative or not finite")
    return energies


def require_finite(numbers: Array, what: str) -> Array:
    """Return ``numbers`` as they came, which no worker has sent unless they are finite. Raise CorruptPayload else."""
    if not np.isfinite(numbers).all():
        raise CorruptPayload(f"{what} has numbers that are not finite")
    return numbers


def relative_error(energies: Float32) -> float:
    """Return what all workers' round trips lose, relative to the energy of all their values."""
    lost, total = energies.sum(0, dtype=np.float64)
    return float(lost / total) if total else 0.0


def take_common_values(
    bucket: Bucket, settings: Settings, root: int, *, with_code: bool = False
) -> Generator[Collective, Array, CommonValues]:
    """Take the values at the root's top-k indices out of the bucket's; with the root's code, if wanted."""
    learning, k = settings.learning, settings.k
    layout = IndexSetFormat(bucket.size, k, settings.signs)
    codes = 2 * learning.architecture.numbers(k) if with_code else 0
    buffer = bucket.scratch("set", layout.nbytes + codes, np.uint8)
    buffer[:] = 0
    if bucket.rank == root:
        found, taken = largest(bucket, k)
        indices, values = found.copy(), taken.copy()
        scale = _scale(values)
        layout.encode(indices, values, scale, buffer[: layout.nbytes])
        if codes:
            signs = np.where(values < 0, np.float32(-1), np.float32(1))
            vector = CommonValues(indices, signs, values, scale, buffer).normalized(settings)
            buffer[layout.nbytes :] = learning.encode(vector, 1).reshape(-1).view(np.uint8)
    else:
        _ = bucket.values  # the sum of memory and gradient, while the root is busy
    received = yield Broadcast(buffer, root)
    indices_sent, signs, scale = layout.decode(received[: layout.nbytes])
    if not (0 < scale < math.inf and math.frexp(scale)[0] == 0.5):
        raise CorruptPayload(f"the common indices come with a scale of {scale}, expected a power of two")
    if bucket.rank != root:
        indices = indices_sent
        values = np.empty(len(indices), np.float32)
        bucket.kernels.take(bucket.values, indices, values)
        bucket.kernels.restore(bucket.values, indices, np.zeros(len(indices), np.float32))
    if not np.isfinite(values).all():
        values[:] = 0  # without a memory they are the gradient's; a flag says that it is not finite
    bucket.target = bucket.sent = k
    return CommonValues(indices, signs, values, scale, received[layout.nbytes :])


def _scale(values: Float32) -> float:
    """Return the power of two next to the root mean square: dividing by it is exact."""
    mean = float(np.square(values, dtype=np.float64).mean()) if len(values) else 0.0
    return 2.0 ** min(max(round(math.log2(mean) / 2), -126), 126) if mean > 0 else 1.0
