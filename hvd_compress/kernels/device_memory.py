"""A device without memory left says so as the host does. This needs PyTorch alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError inside of ``with`` where a device has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
