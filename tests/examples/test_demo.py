"""benchmarks/demo.py, in a short form, and what its report says of figures that are known."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.examples.conftest import ROOT
from tests.ranks import programs
from tests.ranks.scenario import Job
from tests.ranks.server import Server

sys.path.insert(0, str(ROOT / "benchmarks"))
import demo_report

TRAININGS = [
    {"label": "Horovod uncompressed", "sent_mb": 30.0, "accuracies": [80.0, 90.0]},
    {"label": "Horovod fp16", "sent_mb": 15.0, "accuracies": [80.0, 90.1]},
    {"label": "SIDCo 0.01", "sent_mb": 0.6, "accuracies": [75.0, 89.8]},
]
MS = {"unlimited": (50.0, 60.0, 70.0), "1gbit": (590.0, 300.0, 100.0), "100mbit": (5000.0, 2500.0, 200.0)}


def content(predicted: bool = False) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for rate, times in MS.items():
        cells += [
            {"rate": rate, "candidate": training["label"], "ms": ms, "training": training["label"]}
            for training, ms in zip(TRAININGS, times, strict=True)
        ]
        best = min(range(3), key=times.__getitem__)
        trial = {"trial_steps": 40, "trial_seconds": 10.0, "choice": "a repr"}
        cells.append({"rate": rate, "candidate": "Auto", "ms": times[best], **trial})
        cells[-1]["training"] = TRAININGS[best]["label"]
    data = {"name": "fashion-mnist", "note": ""}
    trainings = [{**training, "data": data, "steps_per_epoch": 100} for training in TRAININGS]
    network = {"network": "VGG-like", "parameters": 7_413_034, "cells": cells, "trainings": trainings}
    machine = {"load": 0.4, "cores": 2}
    return {"schema": 1, "predicted": predicted, "ranks": 2, "machine": machine, "networks": [network]}


def test_seconds_are_steps_times_the_step_and_the_trial_is_counted() -> None:
    rows = {(row["rate"], row["candidate"]): row for row in demo_report.rows(content()["networks"][0])}
    assert rows["1gbit", "Horovod uncompressed"]["curve"] == [(59.0, 80.0), (118.0, 90.0)]
    assert rows["1gbit", "SIDCo 0.01"]["faster"] == pytest.approx(5.9)
    auto = rows["1gbit", "Auto"]
    assert auto["label"] == "Auto, which chose SIDCo 0.01"
    assert auto["curve"] == [(pytest.approx(10 + 60 * 0.1), 75.0), (pytest.approx(10 + 160 * 0.1), 89.8)]


def test_the_closing_words_follow_from_the_figures() -> None:
    measured = content()
    assert demo_report.closing(measured, measured["networks"][0]) == (
        "VGG-like: at 1 Gbit/s it trains 5.9 times faster with SIDCo 0.01, 0.2 points below uncompressed; "
        "at 100 Mbit/s it trains 25.0 times faster with SIDCo 0.01, 0.2 points below uncompressed; "
        "on one machine without a network compression does not pay."
    )
    predicted = content(predicted=True)
    assert "at 1 Gbit/s it would train 5.9" in demo_report.closing(predicted, predicted["networks"][0])


def test_where_compression_loses_everywhere_it_says_so() -> None:
    lost = copy.deepcopy(content())
    for cell in lost["networks"][0]["cells"]:
        cell["ms"] = 30.0 if cell["candidate"] == "Horovod uncompressed" else 31.0
    assert demo_report.closing(lost, lost["networks"][0]) == (
        "VGG-like: on one machine without a network and at 1 Gbit/s and at 100 Mbit/s compression does not pay."
    )


def test_a_busy_machine_is_warned_of() -> None:
    busy = content()
    assert demo_report.warning(busy) == ""
    busy["machine"]["load"] = 5.5
    assert "(its load was 5.5 on 2 cores)" in demo_report.warning(busy)


def test_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = content(predicted=True)
    demo_report.print_table(demo_report.table(predicted, predicted["networks"][0]))
    said = " ".join(capsys.readouterr().out.split())
    assert "Steps over a network are predicted, between 2 hosts" in said
    assert "│ 1 Gbit/s │ Horovod uncompressed │ 90.0 % │ 30.000 │ 590.0 ms │ 118 s │" in said
    assert "│ │ SIDCo 0.01 │ 89.8 % │ 0.600 │ 100.0 ms │ 20 s │ 5.9 times faster │" in said
    demo_report.picture(predicted, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.multiprocess
@pytest.mark.parametrize("job", [Job("torch", "mpirun", 2)], ids=str)
def test_short_form(server: Server, job: Job, tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    short = ["--networks", "ResNet", "--data", "digits", "--images", "64", "--batch-size", "4", "--epochs", "1"]
    done = programs.run(server, job, ROOT / "benchmarks" / "demo.py", *short, "--seconds", "0.02", "--out", str(out))
    assert done.status == 0, done.said
    found = json.loads(out.read_text())
    assert found["predicted"]
    rows = demo_report.rows(found["networks"][0])
    assert [row["candidate"] for row in rows] == ["Horovod uncompressed", "Horovod fp16", "SIDCo 0.01", "Auto"] * 3
    assert {training["label"] for training in found["networks"][0]["trainings"]} >= {row["training"] for row in rows}
    sent = {row["candidate"]: row["sent_mb"] for row in rows}
    assert sent["SIDCo 0.01"] < sent["Horovod fp16"] / 10 < sent["Horovod uncompressed"] / 20 + 0.01
    steps = {(row["rate"], row["candidate"]): row["ms"] for row in rows}
    kept = ["--seconds", "0.02", "--keep-trainings", "--out", str(out)]
    done = programs.run(server, job, ROOT / "benchmarks" / "demo.py", *short[:-1], "2", *kept)
    assert done.status != 0  # those are trainings of one epoch
    assert json.loads(out.read_text()) == found
    assert steps["100mbit", "Horovod uncompressed"] > 100  # 1.37 MB take no less than 110 ms at 100 Mbit/s
