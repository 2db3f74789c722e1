"""What TensorBoard itself reads of a folder, and whether that is what a record says."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hvd_compress.recording.record import PHASES


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check(folder: Path, record: dict[str, Any]) -> None:
    """The scalars are the record's, of an uninterrupted run with a compressor that selects, and rank 0's alone."""
    assert len(list(folder.iterdir())) == 1
    found = read(folder)
    steps, epochs = record["curve"]["step"], record["epochs"]
    assert steps
    windows = list(pairwise([0, *steps]))
    sent = [fmean(record["steps"]["sent_bytes"][begin:end]) for begin, end in windows]
    seconds = {phase: [fmean(record["steps"][phase][begin:end]) for begin, end in windows] for phase in PHASES}
    expected = {
        "train/loss": record["curve"]["loss"],
        "bytes/step": sent,
        "bytes/total": record["curve"]["sent_bytes"],
        "compression/ratio": [4 * record["model"]["parameters"] / each for each in sent],
        "ms/step": [1e3 * sum(each) for each in zip(*seconds.values(), strict=True)],
        **{f"ms/{phase}": [1e3 * each for each in values] for phase, values in seconds.items()},
        "test/accuracy": [epoch["test_accuracy"] for epoch in epochs],
        "test/loss": [epoch["test_loss"] for epoch in epochs],
    }
    achieved = found.pop("compression/achieved")
    assert [step for step, _ in achieved] == steps
    assert achieved[-1][1] == pytest.approx(record["stats"]["achieved"], rel=0.2)
    assert set(found) == set(expected)
    ends = [(entry + 1) * len(record["steps"]["sent_bytes"]) // len(epochs) for entry in range(len(epochs))]
    for tag, values in expected.items():
        assert [step for step, _ in found[tag]] == (ends if tag.startswith("test/") else steps), tag
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-4, abs=2e-5), tag
