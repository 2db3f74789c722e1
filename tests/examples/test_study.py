import json
from pathlib import Path
from typing import Any

import pytest
import study

from hvd_compress.recording.record import PHASES, Record


def run(folder: Path, label: str, seed: int, accuracy: float, sent: int, **other: Any) -> str:
    flags = {"seed": seed, "epochs": 1, "batch_size": 2, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    about = {
        "label": label,
        "flags": flags,
        "compression": "none",
        "data": {"name": "digits", "train_images": 10},
        "model": {"name": "mlp", "parameters": 250},
        "ranks": 2,
        "machine": {"processor": "a processor"},
        "versions": {"python": "3", "torch": "2", "horovod": "0"},
        **other,
    }
    record = Record(about, complete=True)
    record.add_step(sent, dict.fromkeys(PHASES, 0.001))
    record.epochs.append({"epoch": 1, "test_accuracy": accuracy})
    path = folder / f"{label}-{seed}.json"
    record.write(path)
    return str(path)


def test_means_and_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [run(tmp_path, "small", seed, 0.88 + 0.01 * seed, 10) for seed in (1, 0)]
    files += [run(tmp_path, "plain", seed, 0.90, 1000) for seed in (0, 1)]
    study.main([*files, "--out", str(tmp_path / "out" / "digits")])
    assert "| plain | 90.00, 90.00 | 90.00 | +0.00 | 0.0010 | 1x | 0.0 |" in capsys.readouterr().out
    assert "| small | 88.00, 89.00 | 88.50 | -1.50 | 0.0000 | 100x |" in (tmp_path / "out" / "digits.md").read_text()
    result = json.loads((tmp_path / "out" / "digits.json").read_text())
    assert [row["seeds"] for row in result["rows"]] == [[0, 1], [0, 1]]


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [run(tmp_path, "plain", 0, 0.9, 1000), run(tmp_path, "small", 1, 0.9, 10)]
    with pytest.raises(SystemExit):
        study.main([*files, "--out", str(tmp_path / "digits")])
    assert "not the same seeds" in capsys.readouterr().err
    files[1] = run(tmp_path, "small", 0, 0.9, 10, ranks=4)
    with pytest.raises(SystemExit):
        study.main([*files, "--out", str(tmp_path / "digits")])
    assert "differ in data, model or ranks" in capsys.readouterr().err
    assert not list(tmp_path.glob("digits*"))
