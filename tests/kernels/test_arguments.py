"""Wrong arguments raise, name the argument, and write nothing; and how the kernels are chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from hvd_compress import kernels as kernels_package
from hvd_compress.kernels import Moments, workspace
from hvd_compress.kernels import host as host_module
from hvd_compress.kernels.host import KERNELS as HOST

F = np.float32


def floats(n):
    return np.zeros(n, F)


def select(memory, pieces, out, threshold=1.0, capacity=5, indices=None, values=None):
    indices = np.empty(workspace(5), np.uint32) if indices is None else indices
    values = floats(workspace(5)) if values is None else values
    return HOST.select(memory, pieces, out, threshold, capacity, indices, values)


def readonly(n):
    x = floats(n)
    x.flags.writeable = False
    return x


buffer = floats(200)
workspaces = floats(workspace(5))
WRONG = {
    "memory of float64": (lambda: HOST.add(np.zeros(9), [floats(9)], floats(9)), TypeError, "memory must be float32"),
    "a list": (lambda: HOST.add([1.0], [floats(1)], floats(1)), TypeError, "memory must be an array"),
    "memory is short": (lambda: HOST.add(floats(8), [floats(9)], floats(9)), ValueError, "memory has 8 elements"),
    "a piece is missing": (lambda: HOST.add(None, [floats(8)], floats(9)), ValueError, "pieces have 8 elements"),
    "a piece of float16": (
        lambda: HOST.add(None, [floats(1), np.zeros(8, np.float16)], floats(9)),
        TypeError,
        r"pieces\[1\]",
    ),
    "strides": (lambda: HOST.add(None, [floats(18)[::2]], floats(9)), ValueError, r"pieces\[0\] must be C-contiguous"),
    "two dimensions": (lambda: HOST.add(None, [floats((3, 3))], floats(9)), ValueError, "1 dimension"),
    "big-endian": (lambda: HOST.add(None, [np.zeros(9, ">f4")], floats(9)), TypeError, "float32"),
    "not aligned": (
        lambda: HOST.add(None, [np.zeros(41, np.uint8)[1:37].view(F)], floats(9)),
        ValueError,
        "aligned to its elements",
    ),
    "read-only": (lambda: HOST.add(None, [floats(9)], readonly(9)), TypeError, "out must be a writable array"),
    "not a sequence": (lambda: HOST.add(None, 3, floats(9)), TypeError, "pieces must be a sequence"),
    "out overlaps memory": (
        lambda: HOST.add(buffer[:100], [floats(100)], buffer[1:101]),
        ValueError,
        "overlaps memory",
    ),
    "out overlaps a piece": (
        lambda: HOST.add(None, [buffer[1:101]], buffer[:100]),
        ValueError,
        r"overlaps pieces\[0\]",
    ),
    "momentum is short": (
        lambda: HOST.add_momentum(floats(8), floats(9), [], 0.9, False, floats(9), floats(9)),
        ValueError,
        "momentum has 8",
    ),
    "momentum is velocity": (
        lambda: HOST.add_momentum(floats(9), floats(9), [], 0.9, False, buffer[:9], buffer[:9]),
        ValueError,
        "velocity_out",
    ),
    "negative lines": (lambda: HOST.sample(floats(99), [], 0, -1, floats(99)), ValueError, "lines"),
    "no room for a sample": (lambda: HOST.sample(floats(999), [], 0, 9, floats(143)), ValueError, "not for 144"),
    "negative threshold": (lambda: HOST.exceedances(floats(9), -1.0, floats(9)), ValueError, "threshold"),
    "threshold NaN": (lambda: select(None, [floats(9)], floats(9), float("nan")), ValueError, "threshold"),
    "exceedances overlap": (lambda: HOST.exceedances(buffer[:9], 1.0, buffer[1:10]), ValueError, "out overlaps x"),
    "exceedances have no room": (lambda: HOST.exceedances(floats(9), 1.0, floats(8)), ValueError, "fewer than x"),
    "k is 0": (lambda: HOST.kth_largest(floats(9), 0), ValueError, r"k must be in \[1, 9\]"),
    "k is too large": (lambda: HOST.kth_largest(floats(9), 10), ValueError, r"k must be in \[1, 9\]"),
    "negative capacity": (lambda: select(None, [floats(9)], floats(9), capacity=-1), ValueError, "capacity"),
    "workspace is short": (
        lambda: select(None, [floats(9)], floats(9), capacity=6),
        ValueError,
        "indices and values need 4108",
    ),
    "values are short": (
        lambda: select(None, [floats(9)], floats(9), values=floats(9)),
        ValueError,
        "indices and values",
    ),
    "values overlap out": (
        lambda: select(None, [floats(9)], workspaces[:9], values=workspaces),
        ValueError,
        "values overlap out",
    ),
    "restore beyond the end": (
        lambda: HOST.restore(floats(9), np.array([9], np.uint32), floats(1)),
        ValueError,
        r"below len\(out\) = 9",
    ),
    "restore too few": (
        lambda: HOST.restore(floats(9), np.array([8], np.uint32), floats(2)),
        ValueError,
        "values has 2",
    ),
    "take beyond the end": (
        lambda: HOST.take(floats(9), np.array([0, 9], np.uint32), floats(2)),
        ValueError,
        r"below len\(values\) = 9",
    ),
    "take to few": (lambda: HOST.take(floats(9), np.array([8], np.uint32), floats(2)), ValueError, "out has 2"),
    "signed indices": (lambda: HOST.restore(floats(9), np.array([8], np.int32), floats(1)), TypeError, "uint32"),
    "no wire": (lambda: HOST.narrow(floats(9), 0, np.zeros(9, np.uint16)), ValueError, "wire must be 1 or 2"),
    "narrow to few": (lambda: HOST.narrow(floats(9), 1, np.zeros(8, np.uint16)), ValueError, "out has 8"),
    "dense of another length": (
        lambda: HOST.accumulate_dense(np.zeros((2, 8), np.uint16), 1, 1.0, floats(9)),
        ValueError,
        "payloads have 8",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def pack(kernels, indices, n=None, *, capacity=4, wire=1, words=np.uint16, counts=np.uint16, memory=None):
    indices = np.array(indices, np.uint32)
    values = floats(len(indices) if n is None else n)
    kernels.pack(indices, values, wire, np.zeros(2, counts), np.zeros(capacity, np.uint16), np.zeros(4, words), memory)


def test_pack_refuses(kernels):
    pack(kernels, [1, 5, 70_000], memory=floats(70_001))
    for arguments, message in (
        ({"indices": [5, 5]}, "ascend"),
        ({"indices": [5, 4]}, "ascend"),
        ({"indices": [1, 131_072]}, "blocks"),
        ({"indices": [1, 2, 3], "n": 2}, "values"),
        ({"indices": [1], "capacity": 5}, "words"),
        ({"indices": [1, 2, 3, 4, 5]}, "positions"),
        ({"indices": [1], "wire": 3}, "wire"),
        ({"indices": [1, 9], "memory": floats(9)}, "memory has 9"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(kernels, **arguments)
    if kernels is HOST:
        for wrong in ({"words": F}, {"words": np.uint16, "wire": 0}, {"counts": np.int16}):
            with pytest.raises(TypeError, match="must be"):
                pack(kernels, [1], **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts_at": -1}, "counts_at"),
        ({"counts_at": 97}, "counts_at"),
        ({"positions_at": 85}, "positions_at"),
        ({"values_at": 69}, "values_at"),
        ({"capacity": 1000}, "(positions_at|capacity)"),
        ({"wire": 3}, "wire"),
        ({"entries": np.zeros(3, np.uint32)}, "entries"),
    ],
)
def test_accumulate_refuses_sections_outside_of_the_payload(kernels, change, message):
    arguments = {
        "payloads": np.zeros((2, 100), np.uint8),
        "counts_at": 0,
        "positions_at": 4,
        "values_at": 20,
        "count_bytes": 4,
        "capacity": 8,
        "wire": 0,
        "entries": np.zeros(2, np.uint32),
        "scale": 1.0,
        "out": floats(50),
    }
    kernels.accumulate(**arguments)
    with pytest.raises(ValueError, match=message):
        kernels.accumulate(**(arguments | change))


def test_moments_know_whether_they_are_finite():
    assert Moments(0, 0.0, 0.0, 0.0).finite
    assert not Moments(1, 0.0, 0.0, float("inf")).finite
    assert not Moments(1, 0.0, 0.0, float("nan")).finite


def test_a_huge_allocation_fails():
    with pytest.raises(MemoryError):
        HOST.empty(2**55)


def test_instruction_sets():
    assert host_module.available()[-1] == "portable"
    assert host_module.isa() in host_module.available()
    with pytest.raises(ValueError, match="portable"):
        host_module.use("mmx")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_environment_chooses():
    code = (
        "from hvd_compress import kernels; from hvd_compress.kernels import host; print(kernels.get().name, host.isa())"
    )
    assert python(code, HVD_COMPRESS_ISA="portable", HVD_COMPRESS_KERNELS="host").stdout == "host portable\n"
    assert python(code, HVD_COMPRESS_KERNELS="reference").stdout.startswith("reference ")
    assert "no instruction set 'neon'" in python(code, HVD_COMPRESS_ISA="neon").stderr
    assert "unknown kernel set 'gpu'" in python(code, HVD_COMPRESS_KERNELS="gpu").stderr


def test_a_missing_extension_says_what_to_do():
    code = (
        "import sys; sys.modules['hvd_compress.kernels._host'] = None\n"
        "from hvd_compress import kernels; kernels.get({})"
    )
    failed = python(code.format("'host'"))
    assert failed.returncode
    assert "HVD_COMPRESS_KERNELS=reference" in failed.stderr
    assert "Reinstall" in failed.stderr
    assert python(code.format("'reference'")).returncode == 0


def test_kernel_sets_are_cached():
    assert kernels_package.get("host") is HOST
