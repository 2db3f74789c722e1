"""Weights & Biases itself, offline: what a recorded run leaves on the disk, which `wandb sync` would send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import numpy as np
from hvd_compress import Recorder, Simulation, TopK

given = TopK(0.1)
simulation = Simulation(given, 2)
wandb = {"project": "mine", "mode": "offline", "dir": "."}
with Recorder(given, "run.json", ranks=2, every=2, flags={"seed": 3}, wandb=wandb) as recorder:
    for epoch in range(2):
        for step in range(3):
            simulation.step({"w": [np.ones((50, 40), np.float32)] * 2})
            recorder.step(float(step))
        recorder.epoch(accuracy=0.5 + epoch / 4)
"""

# The file is a log of LevelDB's: blocks of 32 KiB, and in them pieces of records, with checksum, length and place.
READ = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record

content, at, whole, found = open(sys.argv[1], "rb").read(), 7, b"", []
while at < len(content):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    length, place = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
    whole += content[at + 7 : at + 7 + length]
    at += 7 + length
    if place in (1, 4):  # all of it, or its last piece
        record = Record.FromString(whole)
        whole = b""
        values = lambda items: {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
        if record.HasField("run"):
            found.append({"project": record.run.project, **values(record.run.config.update)})
        if record.HasField("history"):
            found.append(values(record.history.item))
print(json.dumps(found))
"""


@pytest.mark.long
def test_a_run_offline(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", packages, "wandb>=0.16"]
    subprocess.run(pip, check=True)
    env = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, env=env, check=True)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    read = subprocess.run([sys.executable, "-c", READ, file], env=env, check=True, capture_output=True, text=True)
    configured, *logged = json.loads(read.stdout)
    assert configured["project"] == "mine"
    assert configured["compression"] == {"name": "topk", "ratio": 0.1}
    assert [(row["_step"], row.get("train/loss"), row.get("test/accuracy")) for row in logged] == [
        (2, 0.5, None),
        (3, 2.0, 0.5),
        (5, 0.5, None),
        (6, 2.0, 0.75),
    ]
    record = json.loads((tmp_path / "run.json").read_text())
    assert [row["bytes/total"] for row in logged] == record["curve"]["sent_bytes"]
