"""``hvd-compress lgc-train``."""

import json
from pathlib import Path

import numpy as np

import hvd_compress
from tests.simulation import Simulation

WIDTHS = ("--encoder", "8,8,4", "--decoder", "8,8")


def recorded(folder: Path) -> Path:
    compression = hvd_compress.LGC(
        0.1, dense_steps=0, train_steps=99, record=str(folder), min_numel=1, encoder=(8, 8, 4), decoder=(8, 8)
    )
    simulation = Simulation(compression, 2)
    rng = np.random.default_rng(0)
    for _ in range(40):
        common = rng.laplace(size=1000)
        simulation.step({"w": [common + 0.5 * rng.laplace(size=1000) for _ in range(2)]})
    return folder


def test_weights_come_out_and_can_be_used(command, tmp_path: Path) -> None:
    vectors, out = recorded(tmp_path / "vectors"), tmp_path / "weights.safetensors"
    ran = command("lgc-train", vectors, "--out", out, *WIDTHS, "--batches", "40", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert (result["samples"], result["batches"]) == (40, 40)
    assert 0 < result["error"] < 2
    assert 0 < result["top_k_error"] < 1
    compression = hvd_compress.LGC(0.1, weights=out, encoder=(8, 8, 4), decoder=(8, 8), min_numel=1)
    simulation = Simulation(compression, 2)
    simulation.step({"w": [np.linspace(-1, 1, 1000)] * 2})
    assert simulation.compressors[0].stats()["lgc"]["phase"] == "learned"
    ran = command("lgc-train", vectors, "--out", out, *WIDTHS, "--batches", "20", "--variant", "gather")
    assert ran.code == 0
    assert "batches: 20" in ran.out


def test_wrong_usage(command, tmp_path: Path) -> None:
    out = tmp_path / "w"
    for arguments, words in (
        ((tmp_path,), "holds no recorded vectors"),
        ((tmp_path, "--variant", "ring"), "variant must be one of 'allreduce', 'gather', got 'ring'"),
        ((tmp_path, "--encoder", "8,8"), "decoder must have one width less than the encoder"),
        ((tmp_path, "--encoder", "8,x"), "invalid literal"),
        ((tmp_path, "--out", tmp_path / "no" / "w"), "is not a folder"),
    ):
        ran = command("lgc-train", "--out", out, *arguments)
        assert ran.code == 2, ran.out
        assert words in " ".join(ran.err.split())
    assert not out.exists()
