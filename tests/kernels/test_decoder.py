"""The decoder reads what came over the network: it refuses, or decodes; never anything else."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import numpy as np
import pytest

import hvd_compress.kernels
from hvd_compress.kernels import BLOCK, CorruptPayload
from hvd_compress.kernels import host as host_module
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import Layout, make_bucket, same, select

CASES = 10_000


def corrupt(rng, layout, payload, entries):
    """One of the ways in which a payload goes wrong."""
    counts = payload[layout.at[0] : layout.at[1]].view(np.uint16 if layout.count_bytes == 2 else np.uint32)
    positions = payload[layout.at[1] : layout.at[2]].view(np.uint16)
    kind = rng.integers(8)
    if kind == 0:  # flipped bits anywhere
        for at in rng.integers(len(payload), size=rng.integers(1, 9)):
            payload[at] ^= 1 << rng.integers(8)
    elif kind == 1:  # a lie in a count
        counts[rng.integers(len(counts))] = rng.choice([0, 1, 65_535, entries + 1])
    elif kind == 2:  # counts that still add up
        a, b = rng.integers(len(counts), size=2)
        counts[a : a + 1] += 1  # a slice wraps around without a warning
        counts[b : b + 1] -= 1
    elif kind == 3:  # a position beyond the last block's end, or twice the same
        at = rng.integers(max(entries, 1))
        positions[at] = rng.choice([65_535, positions[at - 1]])
    elif kind == 4:  # two positions swapped
        a, b = rng.integers(layout.capacity, size=2)
        positions[a], positions[b] = positions[b], positions[a]
    elif kind == 5:  # a lie in the header
        entries = int(rng.choice([entries + 1, max(entries, 1) - 1, layout.capacity, layout.capacity + 1, 2**32 - 1]))
    elif kind == 6:  # cut off: the rest is something else
        payload[rng.integers(len(payload)) :] = rng.choice([0, 255])
    else:  # noise
        payload[:] = rng.integers(256, size=len(payload))
    return entries


def outcome(kernels, layout, payloads, entries):
    out = np.full(layout.d, 3, np.float32)
    try:
        layout.accumulate(kernels, payloads, entries, 0.5, out)
    except CorruptPayload:
        return None
    return out


def test_corrupt_payloads_raise_or_decode_alike():
    rng = np.random.default_rng(0)
    refused = 0
    isas = host_module.available()
    before = host_module.isa()
    for shape in range(40):
        d = int(rng.choice([40, 1000, 3000, BLOCK, BLOCK + 30], p=[0.3, 0.3, 0.2, 0.1, 0.1]))
        layout = Layout(d, int(rng.integers(1, 40)), int(rng.integers(3)), int(rng.choice([2, 4])))
        s, _, indices, values = select(REFERENCE, make_bucket(shape, d), 0.0, layout.capacity - int(rng.integers(2)))
        good = layout.pack(REFERENCE, indices, values)
        for _ in range(CASES // 40):
            payloads, entries = np.stack([good, good]), [s.kept, s.kept]
            r = rng.integers(2)
            entries[r] = corrupt(rng, layout, payloads[r], s.kept)
            expected = outcome(REFERENCE, layout, payloads, entries)
            refused += expected is None
            host_module.use(isas[rng.integers(len(isas))])
            result = outcome(host_module.KERNELS, layout, payloads, entries)
            assert (result is None) == (expected is None)
            if expected is not None:
                same(result, expected)
    host_module.use(before)
    assert CASES // 4 < refused < CASES


CSRC = pathlib.Path(hvd_compress.kernels.__file__).parent / "csrc"
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mpopcnt"],
}
FLAGS["avx512"] = [*FLAGS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


@pytest.mark.long
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_under_sanitizers(isa, tmp_path):
    """Under AddressSanitizer and UBSan: 10,000 corrupt payloads, and random buckets through all other kernels."""
    if isa not in host_module.available():
        pytest.skip(f"this machine has no {isa}")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler or not CSRC.is_dir():
        pytest.skip("needs a C++ compiler and the sources")
    program = tmp_path / "fuzz"
    flags = [
        "-std=c++17",
        "-O0",
        "-g1",
        "-w",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fsanitize=address,undefined",
    ]
    defines = ["-DINLINE=", f"-DISA=table_{isa}", f'-DSOURCE="{CSRC}/isa_{isa}.cpp"', f"-I{CSRC}"]
    source = pathlib.Path(__file__).parent / "fuzz.cpp"
    command = [compiler, *flags, "-fno-sanitize-recover=all", *FLAGS[isa], *defines, source, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program, str(CASES)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "refused" in ran.stdout
