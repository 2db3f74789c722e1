"""The process that trains beside a training: what it answers, what it refuses, and when it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvd_compress.lgc import frames, process
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.process import Process
from hvd_compress.lgc.training import Outcome, TrainerDied

MADE = Architecture(encoder=(8, 8, 4), decoder=(8, 8))


def wait(condition: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "never happened"
        time.sleep(0.02)


@pytest.fixture
def training() -> Iterator[Process]:
    training = Process(MADE, 1, 0.1, None)
    yield training
    training.close()


def test_it_trains_as_the_worker_itself_would(training: Process) -> None:
    """Its state is a trainer's; it answers; it ends with its owner."""
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((2, 64)).astype(np.float32) for _ in range(40)]
    for number in range(40):
        wait(lambda: not training._queue.full())
        training.feed(vectors[number], 20)
    wait(lambda: (training.report()["batches"] or 0) > 20)
    assert training.report()["samples"] == 40
    assert training.report()["dropped"] == 0
    state = training.state()
    wait(lambda: training.finish() is not None)
    outcome = training.finish()
    assert outcome is not None
    assert outcome.samples == 40
    assert outcome.batches >= 40
    again = Process(MADE, 1, 0.1, state)
    wait(lambda: (again.report()["samples"] or 0) == 40)
    again._process.stdin.close()  # type: ignore[union-attr]
    wait(lambda: again._process.poll() == 0)
    with pytest.raises(TrainerDied, match="has ended"):
        again.feed(vectors[0], 20)
    again.close()


def test_a_full_queue_drops_and_does_not_wait(training: Process) -> None:
    os.kill(training.pid, signal.SIGSTOP)
    for _ in range(process.QUEUE + 50):
        training.feed(np.ones((2, 200_000), np.float32), 20)
    assert 0 < training.report()["dropped"] <= 50


def test_a_sample_too_large_is_dropped(training: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LARGEST_SAMPLE", 1000)
    training.feed(np.ones((2, 200), np.float32), 20)
    assert training.report()["dropped"] == 1


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of Python's own, of other packages, and such that are looked for and not there."""
    marker = tmp_path / "imported"
    for name in ("queue", "json", "torch", "safetensors", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r} + ' ')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path, "."])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path)]))
    training = Process(MADE, 1, 0.1, None)
    state = training.state()
    training.close()
    assert state
    assert not marker.exists(), marker.read_text()


def test_its_path_and_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself comes last where it lies in the working folder; and the process is nobody's rank."""
    package = Path(process.__file__).resolve().parents[2]
    monkeypatch.chdir(package)
    monkeypatch.setattr(sys, "path", [str(package), "", str(tmp_path), "/elsewhere"])
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    environment = process._environment()
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/elsewhere", str(package)]
    assert "OMPI_COMM_WORLD_RANK" not in environment


def test_it_ends_with_a_parent_whose_forked_child_lives(tmp_path: Path) -> None:
    """That child has the pipe open, so the input does not end."""
    program = f"""
import os, sys, time
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.process import Process
training = Process(Architecture(encoder=(8, 8, 4), decoder=(8, 8)), 1, 0.1, None)
training.state()  # it has begun
child = os.fork()
if not child:
    sys.stdout = sys.stderr = None
    os.close(1); os.close(2)
    time.sleep(600)
print(training.pid, child, flush=True)
os.kill(os.getpid(), {signal.SIGKILL:d})
"""
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    pid, child = map(int, ran.stdout.split())
    try:
        assert alive(child)
        wait(lambda: not alive(pid))
    finally:
        os.kill(child, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # nobody may be there to bury it


def test_the_state_of_a_stopped_one_is_not_waited_for(training: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the question can be put or not; and it goes on when it may."""
    monkeypatch.setattr(process, "LIMIT", float("inf"))  # would wait for ever
    monkeypatch.setattr(process, "STOPPED", 0.2)
    os.kill(training.pid, signal.SIGSTOP)
    with pytest.raises(TrainerDied, match="is stopped"):
        training.state()
    while training._offer(frames.STATE, b""):
        pass
    with pytest.raises(TrainerDied, match="is stopped"):
        training.state()
    monkeypatch.setattr(process, "STOPPED", float("inf"))
    os.kill(training.pid, signal.SIGCONT)
    assert training.state()


def test_the_state_of_one_that_ends_meanwhile(training: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LIMIT", float("inf"))
    os.kill(training.pid, signal.SIGSTOP)
    monkeypatch.setattr(training, "_is_stopped", lambda: os.kill(training.pid, signal.SIGKILL))
    with pytest.raises(TrainerDied, match="has ended"):
        training.state()


def test_one_that_does_not_answer(training: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    os.kill(training.pid, signal.SIGSTOP)
    monkeypatch.setattr(process, "LIMIT", 0.2)
    with pytest.raises(TrainerDied, match="has not answered"):
        training.state()


@pytest.mark.parametrize("length", [2**32 - 1, frames.MOST])
def test_a_frame_that_claims_to_be_long(length: int) -> None:
    """Memory for it is not there before its content is."""
    pipe = io.BytesIO(frames._FRAME.pack(frames.SAMPLE, length) + b"short")
    tracemalloc.start()
    try:
        assert frames.receive(pipe) is None
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_frames_back_and_forth() -> None:
    outcome = Outcome(b"weights", 0.5, 0.75, 3, 4)
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    sent = [
        (frames.SAMPLE, frames.sample_content(vectors, 7)),
        (frames.OUTCOME, frames.outcome_content(outcome)),
        (frames.STATE, bytes(3 * frames.PIECE + 1)),
        (frames.FINISH, b""),
    ]
    pipe = io.BytesIO()
    for kind, content in sent:
        frames.send(pipe, kind, content)
    pipe.seek(0)
    received = [frames.receive(pipe) for _ in range(5)]
    assert received == [*sent, None]
    found, entries = frames.sample_of(received[0][1])  # type: ignore[index]
    np.testing.assert_array_equal(found, vectors)
    assert entries == 7
    assert frames.outcome_of(received[1][1]) == outcome  # type: ignore[index]


def test_a_frame_too_long_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST", 10)
    with pytest.raises(ValueError, match="exceeds 10"):
        frames.send(io.BytesIO(), frames.STATE, bytes(11))


def test_a_question_that_it_does_not_know_ends_it(training: Process) -> None:
    training._queue.put((b"?", b""))
    wait(lambda: training._process.poll() is not None)
    with pytest.raises(TrainerDied, match="has ended"):
        training.stalled()
