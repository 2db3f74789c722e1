"""``hvd.join()`` under PyTorch knows of optimizers that have not had a gradient yet, on a rank without data, say."""

from __future__ import annotations

import gc

import horovod.torch as hvd
import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.joining import watch_join


def register() -> None:
    """Have ``join`` looked at from now on."""
    watch_join(hvd, begin_serving)


def begin_serving() -> None:
    """Let compressors that wait for their first step serve the optimizers that they were given to."""
    from hvd_compress.drivers.torch import horovod_internals  # knows only some versions of Horovod

    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.optim.Optimizer):
            continue
        compression = horovod_internals.compression(thing)
        if isinstance(compression, Compressor) and compression.runtime.driver is None:
            compression.bind(thing)
