"""The recorder for anyone's script: its record, which ``compare`` reads, and where else its figures go."""

import ast
import csv
import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import Recorder, Simulation, TopK
from hvd_compress.cli import records
from hvd_compress.recording import outputs, recorder
from hvd_compress.recording.horovod_own import HOROVOD

GIVEN = {"w": [np.full((50, 40), rank + 1, np.float32) for rank in range(2)]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the recorder sees, in the one element; it stands still by itself."""
    now = [100.0]
    monkeypatch.setattr(recorder, "perf_counter", lambda: now[0])
    return now


def test_a_run(tmp_path: Path, clock: list[float]) -> None:
    given = TopK(0.1)
    simulation = Simulation(given, 2)
    path = tmp_path / "new" / "run.json"
    with Recorder(given, path, ranks=2, model="net", data="digits", every=2, flags={"seed": 3}) as it:
        for epoch in range(2):
            for step in range(3):
                simulation.step(GIVEN)
                clock[0] += 5.0
                it.step(loss=float(step))
            clock[0] += 60.0  # a test
            it.epoch(accuracy=0.5 + epoch / 4, loss=1.0)
            assert json.loads(path.read_text())["complete"] is False
    record = records.read(path)
    assert record["complete"]
    assert record["label"] == "TopK(ratio=0.1)"
    assert record["compression"] == {"name": "topk", "ratio": 0.1}
    assert record["model"] == {"name": "net", "parameters": 2000}
    assert record["curve"]["step"] == [2, 3, 5, 6]  # every two, and what is left at the end of an epoch
    assert record["curve"]["loss"] == [0.5, 2.0, 0.5, 2.0]
    assert [epoch["seconds"] for epoch in record["epochs"]] == [15.0, 15.0]
    row = records.summary(record)
    stats = given.stats()
    assert stats["recent"] == stats["total"]  # the recorder leaves them to the script
    assert (row["accuracy"], row["total_mb"]) == (75.0, stats["total"]["sent_bytes"] / 1e6)
    assert row["step_ms"] == pytest.approx(5000)
    assert 0 < row["compress_ms"] < 5000


def test_phases_beside_the_backward_pass(tmp_path: Path, clock: list[float]) -> None:
    given = TopK()
    it = Recorder(given, tmp_path / "run.json")
    total = given.runtime.statistics.total
    total.compress, total.wait, total.decompress = 3.0, 2.0, 1.0
    clock[0] += 3.0
    it.step()
    assert {phase: it.record.steps[phase] for phase in ("compute", "compress", "wait", "decompress")} == {
        "compute": [0.0], "compress": [1.5], "wait": [1.0], "decompress": [0.5],
    }  # fmt: skip


def test_uncompressed_and_compressed_are_compared(command: Any, tmp_path: Path) -> None:
    given = TopK(0.1)
    simulation = Simulation(given, 2)
    with Recorder(None, tmp_path / "a.json", ranks=2, parameters=2000) as plain:
        plain.step()
        plain.step()
    with Recorder(given, tmp_path / "b.json", ranks=2) as small:
        simulation.step(GIVEN)
        small.step()
    (found,) = command("compare", tmp_path, "--json", "--plot", tmp_path / "c.png").json
    assert [row["label"] for row in found["rows"]] == ["Horovod uncompressed", "TopK(ratio=0.1)"]
    assert found["rows"][1]["smaller"] > 5
    assert found["rows"][0]["accuracy"] is None
    assert " - " in command("compare", tmp_path).words


def test_an_exception_leaves_a_record_that_is_cut_off(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Recorder(TopK(), tmp_path / "run.json") as it:
            it.step()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    record = records.read(tmp_path / "run.json")
    assert not record["complete"]
    assert len(record["steps"]["compute"]) == 1


def test_a_run_that_fails_before_its_first_step_leaves_the_earlier_record(tmp_path: Path) -> None:
    with Recorder(None, tmp_path / "run.json", parameters=100) as it:
        it.step()
    before = (tmp_path / "run.json").read_text()
    assert len(json.loads(before)["epochs"]) == 1

    def fails() -> None:
        with Recorder(None, tmp_path / "run.json", parameters=100, csv=tmp_path / "run.csv") as it:
            it.epoch(accuracy=0.1)  # a test of the model as it is
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert (tmp_path / "run.json").read_text() == before
    with Recorder(None, tmp_path / "new.json", parameters=100):
        pass
    assert not (tmp_path / "new.json").exists()


def test_a_short_run_has_its_losses_and_figures(tmp_path: Path) -> None:
    with Recorder(None, tmp_path / "run.json", parameters=100, csv=tmp_path / "run.csv") as it:
        for loss in range(9):
            it.step(float(loss))
    assert records.read(tmp_path / "run.json")["curve"] == {"step": [9], "loss": [4.0], "sent_bytes": [3600]}
    (row,) = csv.DictReader((tmp_path / "run.csv").open())
    assert (row["step"], row["train/loss"], row["bytes/step"]) == ("9", "4.0", "400.0")


def horovods(class_name: str) -> type:
    """A class as Horovod has it."""
    return type(class_name, (), {"__module__": "horovod.torch.compression"})


@pytest.mark.parametrize(
    ("compression", "label", "name", "width"),
    [
        (None, "Horovod uncompressed", "none", 4),
        (horovods("NoneCompressor"), "Horovod uncompressed", "none", 4),
        (horovods("FP16Compressor"), "Horovod fp16", "fp16", 2),
        (horovods("FP16Compressor")(), "Horovod fp16", "fp16", 2),
    ],
)
def test_horovods_own(tmp_path: Path, compression: Any, label: str, name: str, width: int) -> None:
    with Recorder(compression, tmp_path / "run.json", parameters=100) as it:
        it.step()
    record = records.read(tmp_path / "run.json")
    assert (record["label"], record["compression"]) == (label, name)
    assert record["steps"]["sent_bytes"] == [100 * width]


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_horovods_own_have_these_names(framework: str) -> None:
    """Read from its source, for an import takes seconds."""
    package = find_spec("horovod")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / framework / "compression.py"
    (found,) = (
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Compression"
    )
    named = {
        ast.unparse(node.targets[0]): ast.unparse(node.value) for node in found.body if isinstance(node, ast.Assign)
    }
    assert named == {one.name: one.class_name for one in HOROVOD.values()}


@pytest.mark.parametrize("wrong", [TopK, type("FP16Compressor", (), {}), "fp16"])
def test_what_nobody_can_count_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be a compressor of hvd_compress"):
        Recorder(wrong, tmp_path / "run.json", parameters=100)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Recorder(TopK(), tmp_path / "x" / "run.json", rank=1, ranks=2, csv=tmp_path / "x.csv", wandb={}) as it:
        it.step(1.0)
        it.epoch(0.5)
    assert list(tmp_path.iterdir()) == []


def figures(folder: Path, **where: Any) -> None:
    with Recorder(None, folder / "run.json", parameters=100, every=2, **where) as it:
        for loss in (2.0, 1.0):
            it.step(loss)
        it.epoch(accuracy=0.5)


def test_csv(tmp_path: Path) -> None:
    figures(tmp_path, csv=tmp_path / "new" / "run.csv")
    first, second = csv.DictReader((tmp_path / "new" / "run.csv").open())
    assert (first["step"], first["train/loss"], first["bytes/total"]) == ("2", "1.5", "800")
    assert first["compression/ratio"] == "1.0"
    assert (second["step"], second["test/accuracy"], second["train/loss"]) == ("2", "0.5", "")
    assert list(first) == ["step", *recorder.OF_STEPS, *recorder.OF_TESTS]


def test_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    figures(tmp_path, tensorboard=tmp_path / "board")
    board = events.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert {"train/loss", "ms/step", "bytes/total", "test/accuracy"} <= set(board.Tags()["scalars"])
    (loss,) = board.Scalars("train/loss")
    assert (loss.step, loss.value) == (2, 1.5)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda figures, step: said.append((step, figures)), finish=lambda: said.append("finished")
    )
    module = types.SimpleNamespace(init=lambda **arguments: said.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    figures(tmp_path, wandb={"project": "mine", "mode": "offline"})
    arguments, (step, found), (_, tests), end = said
    assert (arguments["project"], arguments["mode"]) == ("mine", "offline")
    assert arguments["config"]["label"] == "Horovod uncompressed"
    assert (step, found["train/loss"], tests, end) == (2, 1.5, {"test/accuracy": 0.5}, "finished")


@pytest.mark.parametrize(("module", "where"), [("tensorboardX", "tensorboard"), ("wandb", "wandb")])
def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, where: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{where}=.*pip install 'hvd-compress\[{where}\]'"):
        figures(tmp_path, **{where: {} if where == "wandb" else tmp_path / "board"})


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parameters must be given, for None does not count its bytes"):
        Recorder(None, tmp_path / "run.json")
    with pytest.raises(ValueError, match="rank must be from 0 to 0, got 1"):
        Recorder(TopK(), tmp_path / "run.json", rank=1)
    with pytest.raises(OSError, match="must be a file, and is a folder"):
        Recorder(TopK(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="its folder cannot be made"):
        Recorder(TopK(), tmp_path / "file" / "run.json")


def test_the_outputs_are_imported_only_where_they_are_asked_for() -> None:
    assert "tensorboardX" not in vars(outputs)
    assert hvd_compress.Recorder is Recorder
