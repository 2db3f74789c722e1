"""Which parameters are compressed, and how they are fused to buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Parameter(NamedTuple):
    """A parameter that is to be compressed, the same on every worker."""

    name: str
    size: int
    """Its element count."""
    itemsize: int = 4
    """Bytes of one element of its gradient, as Horovod would send it."""
    place: str = ""
    """The device that its gradient is on; empty: the host's memory."""


def is_compressed(shape: Sequence[int], min_numel: int) -> bool:
    """Return whether a parameter of this shape is compressed: it has two dimensions or more, and at least ``min_numel``
    elements. All others (biases, norms, scalars) are left to Horovod as they are, under every driver."""
    return len(shape) >= 2 and math.prod(shape) >= min_numel


def plan_buckets(
    order: Sequence[int], parameters: Sequence[Parameter], bucket_mb: float, kinds: Sequence[str] = ()
) -> list[list[int]]:
    """Cut ``order`` (parameter indices) into buckets of at most ``bucket_mb`` MiB of float32.

    A bucket has parameters of one of the ``kinds`` (by parameter index) that come one after the other. A parameter that
    is larger than a bucket is a bucket of its own. The bucket that is complete last cannot be compressed during the
    backward pass: if it is more than half full, what comes last is a bucket of its own, up to an eighth.
    """
    room = bucket_mb * 2**20 / 4
    layout: list[list[int]] = []
    last: dict[str, tuple[list[int], int]] = {}
    bucket: list[int] = []
    filled = 0
    for index in order:
        size, kind = parameters[index].size, kinds[index] if kinds else ""
        bucket, filled = last.get(kind, ([], 0))
        if not bucket or filled + size > room:
            bucket, filled = [], 0
            layout.append(bucket)
        bucket.append(index)
        filled += size
        last[kind] = bucket, filled
    if filled > room / 2:
        sums = accumulate(parameters[index].size for index in reversed(bucket))
        count = sum(total <= room / 8 for total in sums)
        if count:
            layout.append(bucket[-count:])
            del bucket[-count:]
    return layout
