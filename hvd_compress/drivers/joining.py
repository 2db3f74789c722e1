"""``hvd.join()``: a rank that has no more data lets the others train on, and counts as zeros in what they all-reduce.

Horovod 0.28.1 has neither an all-gather nor a broadcast with a rank that has joined: the job ends, or hangs. And a rank
that has joined does not count the others' steps, by which random choices are the same on all ranks. So ``join`` is
refused, before the rank joins, while there is a compressor that needs any of these.
"""

from __future__ import annotations

import functools
import gc
from types import ModuleType
from typing import Any
from weakref import WeakSet

from hvd_compress.compressor import Compressor

_serving: WeakSet[Compressor] = WeakSet()


def guard_join(horovod: ModuleType, compressor: Compressor) -> None:
    """Have ``join`` of a framework's Horovod refused while this compressor lives, if its exchanges need all ranks."""
    if compressor.joinable:
        return
    _serving.add(compressor)
    join = horovod.join
    if not hasattr(join, "__wrapped__"):
        horovod.join = functools.wraps(join)(functools.partial(_join, join))  # type: ignore[attr-defined]


def _join(join: Any, *arguments: Any, **keywords: Any) -> Any:
    gc.collect()  # an optimizer and its hooks refer to each other, and to the compressor
    for compressor in _serving:
        raise RuntimeError(
            f"hvd.join() cannot be used with {compressor!r}: Horovod can only all-reduce without a rank that has "
            "joined, and this compressor needs all ranks in every step. Give every rank the same number of batches, "
            "or use Dense, QSGDMaxNorm, or no compression"
        )
    return join(*arguments, **keywords)
