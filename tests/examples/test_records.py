from pathlib import Path
from typing import Any

import pytest
import records
from scalars import Scalars

from hvd_compress.cli.records import read, summary
from hvd_compress.recording.record import PHASES, Record


def write_record(path: Path, label: str, sent: int, *, complete: bool = True, note: str = "") -> Path:
    about: dict[str, Any] = {
        "label": label,
        "data": {"name": "digits", "note": note, "train_images": 10},
        "model": {"name": "mlp", "parameters": 250},
        "ranks": 2,
    }
    record = Record(about)
    for step in range(6):
        seconds = {"compute": 0.010 + 0.001 * step, "compress": 0.001, "wait": 0.002, "decompress": 0.0005}
        record.add_step(sent if step else 10 * sent, seconds)
        if step % 2:
            record.add_loss(1 / (step + 1))
    record.epochs.append(
        {
            "epoch": 1,
            "test_accuracy": 0.875,
            "test_loss": 0.5,
            "sent_bytes": record.sent_bytes,
            "seconds": 1.0,
        }
    )
    record.complete = complete
    record.write(path)
    return path


def test_summary_takes_medians(tmp_path: Path) -> None:
    found = summary(read(write_record(tmp_path / "a.json", "A", 1000)))
    assert found == pytest.approx(
        {
            "label": "A",
            "accuracy": 87.5,
            "step_mb": 0.001,
            "total_mb": 0.015,
            "step_ms": 16.0,
            "compute_ms": 12.5,
            "compress_ms": 1.0,
            "wait_ms": 2.0,
            "decompress_ms": 0.5,
        }
    )


def test_a_resumed_record_goes_on(tmp_path: Path) -> None:
    first = Record({})
    first.add_step(7, dict.fromkeys(PHASES, 0.5))
    second = Record({})
    second.restore(first.state())
    second.add_step(8, dict.fromkeys(PHASES, 0.5))
    second.add_loss(1.0)
    assert second.curve == {"step": [2], "loss": [1.0], "sent_bytes": [15]}


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2, "epochs": [1]}', '{"schema": 1, "epochs": []}'])
def test_what_is_not_a_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json"):
        read(tmp_path / "x.json")


def test_phases_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compressor:
        readings = iter([(0, 0, 0), (2, 0, 100), (3, 1, 300), (3, 1, 300)])  # compress, decompress, bytes

        def stats(self) -> dict[str, Any]:
            compress, decompress, sent = next(self.readings)
            return {"total": {"seconds": {"compress": compress, "decompress": decompress}, "sent_bytes": sent}}

    times = iter([10.0, 20.0, 26.0, 27.0])
    monkeypatch.setattr(records, "perf_counter", lambda: next(times))
    watch = records.Stopwatch(Compressor(), dense_bytes=999)
    for _ in range(4):
        watch.mark()
    assert watch.take() == (300, {"compute": 9.0, "compress": 3, "wait": 4.0, "decompress": 1})


def test_a_step_without_marks_in_the_middle_is_all_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0])
    monkeypatch.setattr(records, "perf_counter", lambda: next(times))
    watch = records.Stopwatch(None, dense_bytes=999)
    watch.mark()
    watch.mark()
    assert watch.take() == (999, {"compute": 2.0, "compress": 0.0, "wait": 0.0, "decompress": 0.0})


class Silent:
    def advance(self, note: str) -> None: ...

    def say(self, text: str) -> None: ...


def watched(record: Record, epochs: range, steps: int = 5) -> None:
    watch = records.Watch(record, Silent(), Scalars(None), None, 100, lambda loss: loss + 1, every=2, epochs=2)
    for epoch in epochs:
        watch.begin_epoch(epoch, epoch * steps)
        for step in range(epoch * steps, (epoch + 1) * steps):
            watch.mark()
            watch.mark()
            watch.end_step(float(step))
        watch.end_epoch(0.5, 0.25, 3.0)


def test_a_watch_fills_the_record_alike_whether_resumed_or_not() -> None:
    whole, resumed = Record({}), Record({})
    watched(whole, range(2))
    watched(resumed, range(1))
    watched(resumed, range(1, 2))
    assert whole.curve == resumed.curve
    # every two steps of an epoch, and what is left at its end
    assert whole.curve == {
        "step": [2, 4, 5, 7, 9, 10],
        "loss": [1.5, 3.5, 5.0, 6.5, 8.5, 10.0],
        "sent_bytes": [200, 400, 500, 700, 900, 1000],
    }
    assert whole.epochs == resumed.epochs
    assert [entry["epoch"] for entry in whole.epochs] == [1, 2]
    assert whole.epochs[1]["sent_bytes"] == 1000


def test_a_rank_without_the_record_averages_in_the_same_steps() -> None:
    """Only rank 0 restores the record of a run that goes on."""
    calls: list[float] = []
    watch = records.Watch(Record({}), Silent(), Scalars(None), None, 100, lambda loss: calls.append(loss) or 0.0, 2, 2)
    watch.begin_epoch(1, 5)
    for loss in (7.0, 8.0, 9.0):
        watch.mark()
        watch.mark()
        watch.end_step(loss)
    assert calls == [7.5]
    watch.end_epoch(0.5, 0.25, 3.0)
    assert calls == [7.5, 9.0]
