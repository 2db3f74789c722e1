"""benchmarks/reconstruction.py, on small gradients that are not recorded."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_report(tmp_path: Path) -> None:
    import reconstruction

    generator = np.random.default_rng(0)
    for step in (1, 2):
        parameters = {
            "weight": generator.standard_normal((2, 128, 80)).astype(np.float32) ** 3,
            "bias": np.full((2, 80), np.nan, np.float32),  # is not compressed
        }
        np.savez(tmp_path / f"{step}.npz", **parameters)
    reconstruction.report(tmp_path, tmp_path / "out")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["steps"] == [1, 2]
    assert result["elements"] == 128 * 80
    for row in result["rows"]:
        assert row["sent_bytes"] <= 1.01 * 4 * 128 * 80 / row["budget"]
        assert all(0 < error < (1 if "TopK" in row["name"] else 100) for error in row["error"].values())
    errors = {(row["format"], row["of"], row["step"]): row["error"] for row in result["formats"]}
    assert errors["range float, 8 bits", "elements", 1] < errors["uniform, 8 bits", "elements", 1]
    assert "FFT" in (tmp_path / "out.md").read_text()
    assert (tmp_path / "out.png").stat().st_size > 0


def test_the_picture_of_formats(tmp_path: Path) -> None:
    from reconstruction_report import picture_of_formats

    gradient = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) ** 3
    picture_of_formats(gradient, tmp_path / "range-float.png")
    assert (tmp_path / "range-float.png").stat().st_size > 0


def test_formats_round_to_the_nearest() -> None:
    from reconstruction_errors import bfloat16, uniform

    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(bfloat16(values), expected)
    unit = np.abs(values).max() / 7
    assert np.abs(uniform(values, 4) - values).max() <= unit / 2 * 1.0001


def test_what_is_left_without_a_transform() -> None:
    from reconstruction_errors import strongest

    gradient = np.array([0, 0, 3, -1, 0.5, 0, 0], np.float32)
    np.testing.assert_array_equal(strongest(gradient, 2, 1, 8), [0, 0, 3, -1, 0, 0, 0])
    np.testing.assert_array_equal(strongest(gradient, 1, 1, 8), [0, 0, 3, 0, 0, 0, 0])
