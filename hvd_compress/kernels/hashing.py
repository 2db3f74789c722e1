"""Counter-based hashes: random numbers that depend on a key and a counter alone, whatever is drawn when and where."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvd_compress.kernels.protocol.definitions import LANES, UInt32


def mix(*parts: int) -> int:
    """Fold integers (seed, step, bucket, ...) into one 64-bit key: SplitMix64's finalizer over a running sum."""
    mask = 0xFFFFFFFFFFFFFFFF
    key = 0
    for part in parts:
        z = (key + part + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        key = z ^ (z >> 31)
    return key


def hash64(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's finalizer applied to ``key + (counter+1)*golden``.

    ``key`` is a 64-bit integer that ``mix`` made of (seed, step, bucket). Any counter's hashes are a bijection of the
    keys.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(key & 0xFFFFFFFFFFFFFFFF) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash32(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the upper half of ``hash64``: numbers in [0, 2**32)."""
    return hash64(key, counter) >> np.uint64(32)


def mix32(key: int, counter: UInt32) -> UInt32:
    """Return a hash of 32-bit counters that is cheap in vectors (modulo 2**32); its upper bits are the better ones.

    For any key it is a bijection; for any counter, and either half of the key, it is exactly uniform over the other.
    """
    x = counter * np.uint32(0x9E3779B9) + np.uint32(key & 0xFFFFFFFF)
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15)) + np.uint32(key >> 32)
    return x * np.uint32(0x846CA68B)


def scramble(key: int, d: int) -> UInt32:
    """Return the random numbers of elements ``0 ... d - 1`` of a quantizer; each is exactly uniform over the keys.

    For its e-th element line ``2*p`` has ``h = mix32(hash64(key, 0), 16*p + e)``, and line ``2*p + 1`` has
    ``h * 0x915F77F5`` (mod 2**32): the next number of a linear congruential generator whose pairs are well spread.
    """
    mixed = int(hash64(key, np.zeros(1, np.uint64))[0])
    i = np.arange(d, dtype=np.uint32)
    line = i >> np.uint32(4)
    h = mix32(mixed, (line >> np.uint32(1)) * np.uint32(LANES) + (i & np.uint32(15)))
    return np.where(line & np.uint32(1), h * np.uint32(0x915F77F5), h)
