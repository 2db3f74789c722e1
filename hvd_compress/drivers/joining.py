"""``hvd.join()``: a rank that has no more data lets the others train on, and counts as zeros in what they all-reduce.

Horovod 0.28.1 has neither an all-gather nor a broadcast with a rank that has joined: the job ends, or hangs. And a rank
that has joined does not count the others' steps, by which random choices are the same on all ranks. So ``join`` is
refused, before the rank joins, while there is a compressor that needs any of these; the ranks that are about to wait
for this one in their next step are told where the framework can.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.wrapping import wrap_once

COLLECTIONS = 4
"""How often garbage is collected, at most, before it is asked which compressors there are."""

_serving: WeakKeyDictionary[Compressor, Callable[[Compressor], bool]] = WeakKeyDictionary()
"""In the order in which they began; and what says whether ``join`` is refused, and tells the other ranks."""

_begin_serving: dict[str, Callable[[], None]] = {}
"""By the name of a framework's Horovod, what finds compressors that have not had their first step."""


def guard_join(horovod: ModuleType, compressor: Compressor, refuse: Callable[[Compressor], bool]) -> None:
    """Have ``join`` of a framework's Horovod refused while this compressor lives, if its exchanges need all ranks.

    ``refuse`` is called then, if it is the only such compressor: nobody knows in which one's step the others are. It
    returns whether its exchanges need all ranks indeed, and has the others raise ``JoinRefused`` if it can.
    """
    if compressor.joinable:
        return
    _serving[compressor] = refuse
    watch_join(horovod)


def watch_join(horovod: ModuleType, begin_serving: Callable[[], None] | None = None) -> None:
    """Have ``join`` of a framework's Horovod looked at first, and ``begin_serving`` called then: it has compressors
    guarded that wait for their first step."""
    if begin_serving is not None:
        _begin_serving[horovod.__name__] = begin_serving
    wrap_once(horovod, "join", lambda join: functools.partial(_join, horovod, join))


class JoinRefused(RuntimeError):
    """``join`` was called on some rank while there is this compressor."""

    def __init__(self, compressor: Compressor) -> None:
        super().__init__(
            f"hvd.join() cannot be used with {compressor!r}: Horovod can only all-reduce without a rank that has "
            "joined, and this compressor needs all ranks in every step. Give every rank the same number of batches, or "
            "use Dense, QSGDMaxNorm, or no compression"
        )


def _join(horovod: Any, join: Any, *arguments: Any, **keywords: Any) -> Any:
    # An optimizer and its hooks refer to each other, and to the compressor; after an error they go when what autograd
    # held of the step has gone, in a collection before.
    for _ in range(COLLECTIONS):
        if not gc.collect():
            break
    if horovod.size() > 1 and (begin_serving := _begin_serving.get(horovod.__name__)):
        begin_serving()
    found = list(_serving.items()) if horovod.size() > 1 else []
    for compressor, refuse in found:
        if len(found) > 1 or refuse(compressor):
            raise JoinRefused(compressor)
    return join(*arguments, **keywords)
