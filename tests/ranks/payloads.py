"""The same gradients through both frameworks: what is compressed, and how the payloads are written down.

Under PyTorch, a bucket's random numbers go by its parameter's name in the first step, and by its place among the
buckets from then on; under TensorFlow by its place always. Parameters that are called after their place, each a bucket
of its own, make the two the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import hvd_compress
from tests.ranks.rounds import TwoRounds

STEPS = 10


def cases() -> dict[str, hvd_compress.Compressor]:
    """Every compressor that there is, and what their parameters change in the payloads."""
    alone: dict[str, Any] = {"bucket_mb": 1e-6}
    found = {name: hvd_compress.from_config({"name": name, **alone}) for name in hvd_compress.compressor_names()}
    return {
        **found,
        "sidco, gamma-pareto": hvd_compress.SIDCo(0.05, fit="gamma-pareto", seed=3, **alone),
        "sidco, bfloat16": hvd_compress.SIDCo(0.02, wire="bfloat16", **alone),
        "topk, float16": hvd_compress.TopK(0.05, wire="float16", **alone),
        "two rounds": TwoRounds(**alone),
    }


def write(path: Path, gradients: dict[str, Any], sent: dict[str, list[tuple[int, str, Any]]], means: Any) -> None:
    """One rank's file: arrays by case, collective or parameter, and step."""
    arrays = dict(gradients)
    for case, entries in sent.items():
        count: dict[str, int] = {}
        for _, name, array in entries:
            if "round" in name:
                step = count[name] = count.get(name, -1) + 1
                arrays[f"{case}/sent/{name}/{step}"] = array
    np.savez(path, **arrays, **means)
