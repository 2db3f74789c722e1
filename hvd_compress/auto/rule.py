"""The rule by which ``Auto`` and ``hvd-compress advise`` choose among step times: measured ones, or predicted ones."""

from __future__ import annotations

from collections.abc import Sequence


def choose(seconds: Sequence[float], margin: float) -> int:
    """Return the index of what to use, given step times in the order from the mildest candidate to the strongest.

    It is the mildest of those that the fastest beats by no more than ``margin``, a fraction of their own time: less
    than that is not worth compressing more for.

    >>> choose([1.0, 0.995, 0.7, 0.68], margin=0.05)
    2
    >>> choose([1.0, 0.97], margin=0.05)
    0
    """
    fastest = min(seconds)
    return next(index for index, time in enumerate(seconds) if time * (1 - margin) <= fastest)
