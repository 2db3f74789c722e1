"""Payloads as this library has always written them. A change of these files is a change of the wire format.

The compressors' buckets are small enough to be sampled whole: how much is sampled is tuning, not format.

``cases.json`` has the inputs, ``NAME.bin`` the bytes. To write the files anew, after raising ``header.VERSION``:

    python -m tests.golden
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvd_compress import from_config, kernels
from hvd_compress.codecs.innovations import InnovationFormat
from hvd_compress.codecs.lanes import LaneFormat, MaskFormat, levels_of
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.kernels import fraction_bits
from tests.recording import Recorder
from tests.simulation import Simulation

FOLDER = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))


def payload(case: dict[str, Any]) -> bytes:
    """The bytes of a case, made by the kernel set in use."""
    if "bits" in case:
        return lanes(case)
    if "count" in case:
        return innovation(case)
    return sparse(case) if "indices" in case else exchanged(case)


def sparse(case: dict[str, Any]) -> bytes:
    """``values`` are hexadecimal floats: exact, readable, and safe from JSON."""
    layout = SparseFormat(case["elements"], case["capacity"], case["wire"])
    out = np.full(layout.nbytes, 0xAA, np.uint8)
    indices = np.array(case["indices"], np.uint32)
    values = np.array([float.fromhex(value) for value in case["values"]], np.float32)
    layout.encode(kernels.get(), indices, values, None, out)
    return out.tobytes()


def lanes(case: dict[str, Any]) -> bytes:
    """One worker's votes on its finer scales, which have 4, 16, ... times the levels, and its codes by these votes."""
    layout = LaneFormat(case["elements"], levels_of(case["bits"]), case["workers"])
    mask = MaskFormat(case["elements"], case["workers"])
    pieces, count = [numbers(case["elements"], 0)], case["scales"]
    scales = (layout.levels * 2.0 ** (3 + fraction_bits(layout.levels)) * 4.0 ** np.arange(count)).astype(np.float32)
    limits = (0.125 * 0.25 ** np.arange(1, count)).astype(np.float32)
    words, planes = layout.empty(), mask.empty(count - 1)
    kernels.get().mask(pieces, limits, mask.width, planes)
    layout.encode(kernels.get(), pieces, scales, planes if count > 1 else None, 2**63 + 12345, words)
    return planes.tobytes() + words.tobytes()


def innovation(case: dict[str, Any]) -> bytes:
    """The entries of largest magnitude."""
    layout = InnovationFormat(case["length"], case["count"])
    vector = numbers(case["length"], 0)
    chosen = np.sort(np.argsort(-np.abs(vector), kind="stable")[: case["count"]])
    out = np.full(layout.nbytes, 0xAA, np.uint8)
    layout.encode(chosen, vector[chosen], out)
    return out.tobytes()


def exchanged(case: dict[str, Any]) -> bytes:
    """All that worker 1 of 2 has sent in two steps, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        sim = Simulation(from_config(case["compressor"]), 2)
        for step in range(2):
            sim.step({"w": [numbers(case["elements"], 2 * step + rank) for rank in range(2)]})
        return b"".join(post.array.tobytes() for post in recorder.of(1))


def numbers(n: int, salt: int) -> np.ndarray:
    """Gradients from integer arithmetic alone: the same on every machine and with every NumPy."""
    i = np.arange(n, dtype=np.uint64) + np.uint64(1 + 1_000_003 * salt)
    bits = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)  # 24 bits
    uniform = bits.astype(np.float64) / 2**24 - 0.5
    return (uniform * uniform * uniform).astype(np.float32)
