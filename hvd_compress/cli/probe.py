"""What is installed, as a program of its own: an import that crashes or hangs takes nobody with it.

``python -m hvd_compress.cli.probe torch|tensorflow|mpi4py|kernels`` prints a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

MISSING = "missing"
"""Key of a result: the module that is not installed."""
ERROR = "error"
"""Key of a result: why it cannot be imported or used."""


def torch() -> dict[str, Any]:
    module = importlib.import_module("torch")
    gpus = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())]
    return {"version": module.__version__, "gpus": gpus, "horovod": guarded(horovod, "torch")}


def tensorflow() -> dict[str, Any]:
    module = importlib.import_module("tensorflow")
    gpus = [device.name for device in module.config.list_physical_devices("GPU")]
    return {
        "version": module.__version__,
        "gpus": gpus,
        "keras": guarded(keras),
        "horovod": guarded(horovod, "tensorflow"),
    }


def keras() -> dict[str, Any]:
    """Return which Keras ``tf.keras`` is."""
    package = importlib.import_module("tensorflow").keras.Model.__module__.partition(".")[0]
    return {"package": package, "version": importlib.import_module(package).__version__}


def horovod(framework: str) -> dict[str, Any]:
    """Return with which controllers and libraries Horovod was built for a framework."""
    module = importlib.import_module(f"horovod.{framework}")
    return {key: bool(getattr(module, f"{key}_built")()) for key in ("mpi", "gloo", "nccl", "cuda")}


def mpi4py() -> dict[str, Any]:
    module = importlib.import_module("mpi4py")
    module.rc.initialize = False
    mpi = importlib.import_module("mpi4py.MPI")
    return {"version": module.__version__, "library": mpi.Get_library_version().partition("\0")[0].splitlines()[0]}


def kernels() -> dict[str, Any]:
    """Return which kernels a compressor would use, after they have exchanged something."""
    import numpy as np

    from hvd_compress import Simulation, TopK
    from hvd_compress.kernels import get

    name = get().name
    found: dict[str, Any] = {"name": name}
    if name == "host":
        host = importlib.import_module("hvd_compress.kernels.host")
        found |= {"isa": host.isa(), "available": host.available()}
    gradient = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    mean = Simulation(TopK(0.25), 2).step({"w": [gradient, gradient]})["w"]
    found["works"] = bool(np.count_nonzero(mean) == gradient.size // 4 and mean[0, 0] == -1)
    return found


PROBES = {"torch": torch, "tensorflow": tensorflow, "mpi4py": mpi4py, "kernels": kernels}


def guarded(function: Any, *arguments: str) -> dict[str, Any]:
    """Return the function's result, or what went wrong: both are findings."""
    try:
        result: dict[str, Any] = function(*arguments)
    except ModuleNotFoundError as error:
        return {MISSING: error.name, ERROR: str(error)}
    except Exception as error:
        return {ERROR: f"{type(error).__name__}: {error}".strip()}
    return result


def main(name: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stdout.write(f"\n{json.dumps(guarded(PROBES[name]))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
