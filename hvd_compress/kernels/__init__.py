"""The hot loops: one protocol, several implementations that produce identical bytes.

``protocol`` says what each kernel does, and ``reference`` (NumPy) specifies it: short and readable. ``host`` (C++) is
what runs. Every function is defined down to the last bit, so that payloads do not depend on the kernel set or on the
instruction set that made them: sums are taken in float64 over sixteen interleaved lanes in a fixed order, thresholds
are compared as integers, random choices come from a counter-based hash (``hashing``).

Choose with the environment variable ``HVD_COMPRESS_KERNELS=host|reference`` (default ``host``). A missing C++
extension is an error that says so, never a silent fall-back to the slow kernels. Tensors on a GPU have kernels of their
own (``on_device``); ``HVD_COMPRESS_KERNELS=device`` makes the PyTorch driver use these for tensors on the CPU too, by
Triton's interpreter: for tests, and very slow.
"""

from __future__ import annotations

import functools
import importlib
import os

from hvd_compress.kernels.hashing import hash32, hash64, mix, mix32, scramble
from hvd_compress.kernels.protocol import (
    BLOCK,
    LANES,
    MAX_LEVELS,
    WIRES,
    CorruptPayload,
    Float32,
    Int64,
    Kernels,
    Moments,
    Pieces,
    RangeCode,
    Sections,
    Selection,
    UInt8,
    UInt16,
    UInt32,
    Words,
    fraction_bits,
    packed_bytes,
    sample_lines,
    workspace,
)

__all__ = [
    "BLOCK",
    "LANES",
    "MAX_LEVELS",
    "WIRES",
    "CorruptPayload",
    "Float32",
    "Int64",
    "Kernels",
    "Moments",
    "Pieces",
    "RangeCode",
    "Sections",
    "Selection",
    "UInt8",
    "UInt16",
    "UInt32",
    "Words",
    "fraction_bits",
    "get",
    "hash32",
    "hash64",
    "mix",
    "mix32",
    "on_device",
    "packed_bytes",
    "sample_lines",
    "scramble",
    "workspace",
]


@functools.cache
def get(name: str | None = None) -> Kernels:
    """Return the kernel set called ``name``: ``"host"`` or ``"reference"``; None asks ``HVD_COMPRESS_KERNELS``."""
    name = name or os.environ.get("HVD_COMPRESS_KERNELS", "host")
    if name == "device":
        raise ValueError("HVD_COMPRESS_KERNELS=device is for the PyTorch driver alone; elsewhere there are no tensors")
    if name not in ("host", "reference"):
        raise ValueError(f"unknown kernel set {name!r}; HVD_COMPRESS_KERNELS takes 'host' or 'reference'")
    module = importlib.import_module(f"hvd_compress.kernels.{name}")
    kernels: Kernels = module.KERNELS
    return kernels


@functools.cache
def on_device(device: str) -> Kernels:
    """Return the kernels for tensors of PyTorch on a device, ``"cuda:0"`` say.

    Raises:
        ImportError: Triton is missing.
    """
    module = importlib.import_module("hvd_compress.kernels.device.placement")
    kernels: Kernels = module.placed(device, get("host"))
    return kernels
