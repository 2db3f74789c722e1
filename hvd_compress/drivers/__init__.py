"""Who runs an exchange: Horovod under a framework, MPI, or a simulation of many workers in one process."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvd_compress.compressor import Compressor, Driver


_TENSORFLOW = ("hvd_compress.drivers.tensorflow.driver", "TensorFlowDriver")
DRIVERS = {
    "torch": ("hvd_compress.drivers.torch.driver", "TorchDriver"),
    "tensorflow": _TENSORFLOW,
    "tf_keras": _TENSORFLOW,
    "keras": _TENSORFLOW,
}


def driver_for(subject: Any) -> Callable[[Compressor], Driver]:
    """The driver class for a gradient or an optimizer, by the framework its class comes from.

    Raises:
        TypeError: it comes from none that is supported.
    """
    for cls in type(subject).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in DRIVERS:
            module, name = DRIVERS[package]
            driver: Callable[[Compressor], Driver] = getattr(importlib.import_module(module), name)
            return driver
    raise TypeError(
        f"hvd_compress has no driver for {type(subject).__module__}.{type(subject).__qualname__}; supported are "
        "tensors and optimizers of PyTorch and TensorFlow under Horovod, NumPy arrays in Simulation and drivers.mpi"
    )
