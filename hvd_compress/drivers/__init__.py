"""Who runs an exchange: Horovod under a framework, MPI, or a simulation of many workers in one process."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvd_compress.compressor import Compressor, Driver


def driver_for(subject: Any) -> Callable[[Compressor], Driver]:
    """The driver class for a gradient or an optimizer, by the framework its class comes from.

    Raises:
        TypeError: it comes from none that is supported.
    """
    for cls in type(subject).__mro__:
        if cls.__module__.partition(".")[0] == "torch":
            driver: Callable[[Compressor], Driver] = importlib.import_module("hvd_compress.drivers.torch").TorchDriver
            return driver
    raise TypeError(
        f"hvd_compress has no driver for {type(subject).__module__}.{type(subject).__qualname__}; supported are "
        "PyTorch tensors and optimizers under Horovod, NumPy arrays in Simulation and drivers.mpi"
    )
