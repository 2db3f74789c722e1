"""Who runs an exchange: Horovod under a framework, MPI, or a simulation of many workers in one process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial

from hvd_compress.compressor import Compressor
from hvd_compress.horovod_interface import Driver, register_construction, register_driver, register_hash_check

_TENSORFLOW = ("hvd_compress.drivers.tensorflow.driver", "TensorFlowDriver")
_DRIVERS = {
    "torch": ("hvd_compress.drivers.torch.driver", "TorchDriver"),
    "tensorflow": _TENSORFLOW,
    "tf_keras": _TENSORFLOW,
    "keras": _TENSORFLOW,
}


def _load(module: str, name: str) -> Callable[[Compressor], Driver]:
    """Import a driver, and with it its framework, when the framework's first tensor has come."""
    driver: Callable[[Compressor], Driver] = getattr(importlib.import_module(module), name)
    return driver


def _check_keras(compressor: Compressor) -> None:
    if "horovod._keras" in sys.modules:
        from hvd_compress.drivers.tensorflow.horovod_internals import check_keras

        check_keras(compressor)


def _extend_horovod() -> None:
    """Let the states of ``hvd.elastic`` keep compressors, and ``join`` know of them, under the frameworks whose Horovod
    has been imported."""
    for framework in ("torch", "tensorflow"):
        if f"horovod.{framework}.elastic" in sys.modules:
            importlib.import_module(f"hvd_compress.drivers.{framework}.elastic").register()
    if "horovod.torch" in sys.modules:
        importlib.import_module("hvd_compress.drivers.torch.joining").register()


for _package, _place in _DRIVERS.items():
    register_driver(_package, partial(_load, *_place))
register_hash_check(_check_keras)
register_construction(_extend_horovod)
