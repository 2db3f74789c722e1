"""Compile the device's programs for GPUs, on a machine without one: as if they were launched, by method calls.

Run with TRITON_INTERPRET=0. Prints how many variants were compiled, and what each program takes at most.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.kernels import Sections, host, packed_bytes, workspace
from hvd_compress.kernels import device as kernels_folder
from hvd_compress.kernels.device import DeviceKernels, selection
from hvd_compress.kernels.device.launch import OPTIONS, Launcher
from hvd_compress.kernels.protocol import LANES

TARGETS = [(GPUTarget("cuda", 90, 32), aligned) for aligned in (True, False)] + [(GPUTarget("cuda", 80, 32), True)]
"""H100 and A100; with tensors and numbers that are divisible by 16, as most are, and with others."""
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
MOST_REGISTERS = 128
"""With 128 threads an instance, so many leave room for four of them on a multiprocessor at a time."""
MOST_SHARED = 48 * 1024
"""Bytes of shared memory of an instance: as many leave room for four on an H100, and need no permission."""
compiled = set()
most = {}
"""Registers and bytes of shared memory of each program."""


def type_of(value):
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64" if value < 2**63 else "u64"


def registers_of(cubin):
    """The registers of a thread; none may have found no place."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, local = re.search(r"REG:(\d+) .*LOCAL:(\d+)", said).groups()
    assert local == "0"
    return int(registers)


def compile_only(self, program, programs, *arguments, **constants):
    """Stands in for ``Launcher.launch``: 1 is a constant, as it is when Triton launches."""
    signature = dict.fromkeys(constants, "constexpr")
    for name, value in zip(program.arg_names, arguments, strict=False):
        if isinstance(value, int) and value == 1 and name not in (program.do_not_specialize or ()):
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = type_of(value)
    signature = {name: signature[name] for name in program.arg_names}
    variant = program.__name__, *signature.items(), *constants.items()
    if variant not in compiled:
        for target, aligned in TARGETS:
            attributes = {
                (place,): [["tt.divisibility", 16]]
                for place, (name, kind) in enumerate(signature.items())
                if aligned and name not in (program.do_not_specialize or ()) and kind[0] in "*iu"
            }
            check(
                program.__name__, triton.compile(ASTSource(program, signature, constants, attributes), target, OPTIONS)
            )
        compiled.add(variant)


def check(name, result):
    """What must hold of a compiled program."""
    assert result.asm["cubin"]
    assert "fma.rn.f32" not in result.asm["ptx"], f"{name} rounds a product and a sum once"
    assert ".ftz" not in result.asm["ptx"], f"{name} loses denormals"
    needs = registers_of(result.asm["cubin"]), result.metadata.shared
    assert needs[0] <= MOST_REGISTERS, name
    assert needs[1] <= MOST_SHARED, name
    most[name] = tuple(map(max, needs, most.get(name, needs)))


def launched():
    """The names of all programs that the kernels launch."""
    folder = Path(kernels_folder.__file__).parent
    return {name for path in folder.glob("*.py") for name in re.findall(r"rograms\.(\w+),", path.read_text())}


def call_everything(kernels):
    d = 4000
    x, out, memory = torch.ones(d), torch.zeros(d), torch.zeros(d)
    last = torch.zeros(2, 20, 10, 10).to(memory_format=torch.channels_last)
    indices, values = np.zeros(workspace(10), np.uint32), np.zeros(workspace(10), np.float32)
    few, some = np.arange(5, dtype=np.uint32), np.zeros(5, np.float32)
    for piece in (x, x.half(), x.bfloat16(), last):
        for held in (None, memory):
            kernels.add(held, [piece], out)
            kernels.sample(held, [piece], 2**64 - 1, 50, np.zeros(d, np.float32))
            kernels.select(held, [piece], out, 0.5, 10, indices, values)
        for flag in (False, True):
            kernels.norm([piece], flag)
            kernels.add_momentum(x, out, [piece], 0.9, flag, x, out)
    kernels.add(memory, [], out)
    # What is launched where more is found than there is room for: two in state, which is not filled here.
    counts, ends = torch.ones(8, dtype=torch.int64), torch.ones(8, dtype=torch.int64)
    chosen = torch.zeros(10, dtype=torch.int32), torch.zeros(10)
    launcher, tile = Launcher(x.device), 1024
    launcher.launch(selection.programs.put_back, 4, counts, *chosen, 10, out, TILE=tile)
    cut = selection.kth_largest(launcher, tile, x, 5)
    launcher.launch(selection.programs.count_largest, 4, x, d, cut, counts, TILE=tile)
    launcher.launch(selection.programs.move_largest, 4, x, d, cut, counts, ends, *chosen, TILE=tile)
    kernels.restore(out, few, some)
    kernels.take(out, few, some)
    for wire in (0, 1, 2):
        payload = np.zeros((1, 64), np.uint8)
        payload[0, 0] = 5
        kernels.accumulate(payload, 0, 4, 24, 4, 5, wire, np.array([5], np.uint32), 0.5, out)
    for wire in (1, 2):
        words = torch.zeros(d, dtype=torch.int16)
        kernels.narrow(x, wire, words)
        kernels.accumulate_dense(words.reshape(2, -1), wire, 0.5, torch.zeros(d // 2))
    planes = torch.zeros(2 * LANES * -(-d // LANES // 31), dtype=torch.int64)
    for dtype in (torch.int32, torch.int64):
        words = torch.zeros(LANES * -(-d // LANES // (8 * dtype.itemsize // 6)), dtype=dtype)
        for pieces in ([x], [x[:96].half(), x[96:]]):
            for scales, chosen_by in ((1, None), (3, planes)):
                factors = np.ones(scales, np.float32)
                kernels.quantize(pieces, factors, chosen_by, 3, 7, 6, 2**64 - 1, words)
                kernels.dequantize(words, chosen_by, 3, 7, 6, factors, out)
            kernels.mask(pieces, np.ones(2, np.float32), 2, planes)
    for size in (d, 2**32 - 1):
        kernels.permutation(2**64 - 1, 0, size, torch.zeros(100, dtype=torch.int32))
    ends, ones = np.array([d]), np.ones(1, np.float32)
    kernels.section_moments(x, ends)
    kernels.ternarize(x, ends, ones, 2**64 - 1, np.zeros(d // 4, np.uint8))
    kernels.accumulate_ternary(np.zeros((1, d // 4), np.uint8), 0, ends, ones.reshape(1, 1), out)
    call_spectra(kernels, torch.zeros(4096), torch.zeros(4096))


def call_spectra(kernels, x, out):
    d = len(x)
    for minuend in (None, x):
        kernels.inverse(x, 1024, 0.5, minuend, out)
    kernels.select_pairs(x, 2.0, 0.5, 10, np.zeros(workspace(10), np.uint32), np.zeros(workspace(10), np.float32))
    kernels.gather_pairs(x, np.arange(5, dtype=np.uint32), torch.zeros(10))
    for bits in (4, 8, 11, 16):
        for key in (None, 2**64 - 1):
            number, packed = RangeFloat(bits, 3, -1.0, 2.0), np.zeros(packed_bytes(d, bits), np.uint8)
            kernels.range_encode(x, number.code, key, packed)
    for count_bytes in (0, 2, 4):
        kernels._summed(
            np.zeros((2, 4096), np.uint8),
            Sections(16, 24, 2000, count_bytes, 8, 8),
            np.zeros(2, np.uint32),
            [np.ones(1, np.float32)] * 2,
            d // 2,
        )


if __name__ == "__main__":
    Launcher.launch = compile_only
    Launcher.empty = Launcher.zeros  # nothing is computed, and what is read back should look sound
    call_everything(DeviceKernels(torch.device("cpu"), host.KERNELS))
    missing = launched() - most.keys()
    assert not missing, f"not compiled: {missing}"
    print(len(compiled))
    for name, (registers, shared) in sorted(most.items()):
        print(f"{name}: {registers} registers, {shared} bytes of shared memory")
