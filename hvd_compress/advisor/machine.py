"""The machine and the software that measured figures depend on."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

import hvd_compress
from hvd_compress.kernels import get


def describe() -> dict[str, Any]:
    """Return what measured figures depend on: the processor, its load, and versions.

    Raises:
        ImportError: the C++ kernels cannot be loaded.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernels = get().name
    found = {
        "processor": models[0] if models else platform.machine(),
        "isa": importlib.import_module("hvd_compress.kernels.host").isa() if kernels == "host" else kernels,
        "threads": 1,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "hvd_compress": hvd_compress.__version__,
        "load": round(os.getloadavg()[0], 1),
    }
    if sys.modules.get("torch"):
        found["torch"] = sys.modules["torch"].__version__
    return found


def memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def has_torch() -> bool:
    """Return whether PyTorch can be imported; if so, it uses one thread from now on."""
    try:
        importlib.import_module("torch").set_num_threads(1)
    except Exception:  # a broken installation raises whatever it likes
        return False
    return True
