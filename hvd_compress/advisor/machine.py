"""The machine and the software that measured figures depend on."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from typing import Any

import numpy as np

import hvd_compress
from hvd_compress.kernels import get
from hvd_compress.recording.record import processor

MOST_SPREAD = 0.25
"""Beyond this, something else runs on a machine while it is measured."""


def describe() -> dict[str, Any]:
    """Return what measured figures depend on: the processor, its load, and versions.

    Raises:
        ImportError: the C++ kernels cannot be loaded.
    """
    kernels = get().name
    found = {
        "processor": processor(),
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


def load() -> float:
    """Return how many processes have run or waited for a core in the last minute, on average."""
    return os.getloadavg()[0]


def warning(load: float, spread: float) -> str:
    """Return a warning that times measured on this machine are not to be relied on, or nothing.

    Args:
        load: ``load()`` before anything was measured.
        spread: half of the times lie within this fraction of the median.
    """
    cores = len(os.sched_getaffinity(0))
    signs = []
    if load > max(0.5, cores - 1):  # no core is left for the one thread that is timed
        signs.append(f"its load was {load:.1f} on {cores} cores")
    if spread > MOST_SPREAD:
        signs.append(f"times differed by {100 * spread:.0f} %")
    if not signs:
        return ""
    return f"This machine is busy ({' and '.join(signs)}), so that compressors look too slow: measure again."


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
