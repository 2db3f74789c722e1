"""What a rank does before the first scenario under PyTorch, and after each."""

from __future__ import annotations

import gc

import horovod.torch as hvd
import torch


def begin() -> tuple[int, int]:
    """Return the rank and the number of ranks."""
    hvd.init()
    torch.set_num_threads(1)
    return hvd.rank(), hvd.size()


def clear() -> None:
    gc.collect()  # optimizers and their hooks refer to each other
