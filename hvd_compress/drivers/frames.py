"""The frames of a function's callers, whose local variables say what Horovod and PyTorch do not hand on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType


def callers() -> Iterator[FrameType]:
    """Yield the frames of those that have called the function that iterates, from the nearest to the first of its
    thread."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
