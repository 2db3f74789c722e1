import os
import subprocess
import sys
from importlib import resources

import pytest

import hvd_compress

HEAVY = ("torch", "tensorflow", "horovod", "mpi4py", "jax", "triton", "matplotlib", "typer")


def fresh(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_importing_loads_no_framework() -> None:
    """Nor does making compressors, or simulating."""
    result = fresh(
        f"""
import sys, numpy, hvd_compress
for name in hvd_compress.registry.BUILT_IN:
    hvd_compress.from_config(name).to_config()
hvd_compress.Simulation(hvd_compress.TopK(), 2).step({{"w": [numpy.ones(2000)] * 2}})
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_import_says_nothing() -> None:
    result = fresh("import hvd_compress")
    assert (result.stdout, result.stderr) == ("", "")


def test_typed() -> None:
    assert resources.files("hvd_compress").joinpath("py.typed").is_file()


def test_public_names() -> None:
    assert sorted(hvd_compress.__all__, key=str.lower) == sorted(set(hvd_compress.__all__), key=str.lower)
    for name in hvd_compress.__all__:
        thing = getattr(hvd_compress, name)
        alias = name in ("Collective", "Collectives", "Exchange")  # of types: they have no docstring of their own
        assert alias or thing.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", ["numpy", "HOST"])
def test_unknown_kernel_set(name: str) -> None:
    result = fresh(
        "import numpy, hvd_compress\nhvd_compress.Simulation(hvd_compress.TopK(), 1).step({'w': [numpy.ones(2000)]})",
        HVD_COMPRESS_KERNELS=name,
    )
    assert f"unknown kernel set '{name}'; HVD_COMPRESS_KERNELS takes 'host' or 'reference'" in result.stderr


def test_no_driver_for_a_stranger() -> None:
    with pytest.raises(TypeError, match=r"no driver for builtins\.list; supported are .*PyTorch"):
        hvd_compress.TopK().compress([1.0])
