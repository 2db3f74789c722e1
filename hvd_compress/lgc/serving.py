"""Who trains, and how it is fed: the worker itself between two steps, or a process of its own beside the training."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from time import monotonic, perf_counter
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from hvd_compress.kernels import Float32
from hvd_compress.lgc.architecture import Architecture

if TYPE_CHECKING:
    from hvd_compress.lgc.trainer import Outcome, Trainer

log = logging.getLogger(__name__)

QUEUE = 64
"""Samples that wait for the process; more are dropped rather than waited for."""
PER_STEP = 1
"""Batches for each sample: at once where a worker trains itself, and in the end at least where a process does."""
LIMIT = 120.0
"""Seconds that the process may be silent when it has been asked something, before it counts as dead."""

_FRAME = struct.Struct("<cI")
_SAMPLE = struct.Struct("<III")


class TrainerDied(RuntimeError):
    """The process that trains is gone, or does not answer."""


class Training(Protocol):
    """A trainer, wherever it runs. Nothing here blocks but ``state``."""

    kind: str

    def feed(self, vectors: Float32, entries: int) -> None:
        """Hand over a sample."""
        ...

    def stalled(self) -> bool:
        """Whether more training would be of no use."""
        ...

    def finish(self) -> Outcome | None:
        """Ask for the outcome; None: not yet. Raises TrainerDied."""
        ...

    def state(self) -> bytes:
        """Everything it knows. Raises TrainerDied."""
        ...

    def report(self) -> dict[str, Any]:
        """For statistics."""
        ...

    def close(self) -> None: ...


def trainer_of(architecture: Architecture, seed: int, similarity: float, state: bytes | None) -> Trainer:
    """A new trainer, or one that goes on from a state."""
    from hvd_compress.lgc.trainer import Trainer

    trainer = Trainer(architecture, seed, similarity)
    if state is not None:
        trainer.load_state(state)
    return trainer


class Inline:
    """Trains between two steps: it takes its time, and does the same whenever it is repeated."""

    kind = "inline"

    def __init__(self, architecture: Architecture, seed: int, similarity: float, state: bytes | None) -> None:
        self._trainer = trainer_of(architecture, seed, similarity, state)
        self._seconds = 0.0

    def feed(self, vectors: Float32, entries: int) -> None:
        started = perf_counter()
        if self._trainer.add(vectors, entries) and not self._trainer.stalled:
            self._trainer.train(PER_STEP)
        self._seconds += perf_counter() - started

    def stalled(self) -> bool:
        return self._trainer.stalled

    def finish(self) -> Outcome | None:
        return self._trainer.finish()

    def state(self) -> bytes:
        return self._trainer.state()

    def report(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "samples": trainer.samples,
            "refused": trainer.refused,
            "dropped": 0,
            "batches": trainer.batches,
            "error": trainer.best if trainer.best < float("inf") else None,
            "seconds": self._seconds,
        }

    def close(self) -> None:
        pass


class Process:
    """A Python of its own, at low priority, that is fed through a pipe.

    ``feed`` copies a sample to a bounded queue, and drops it where that is full; a thread writes, another reads. The
    process ends with this one, whatever happens to it: its standard input is then at its end.
    """

    kind = "process"

    def __init__(self, architecture: Architecture, seed: int, similarity: float, state: bytes | None) -> None:
        about = {"architecture": architecture.to_config(), "seed": seed, "similarity": similarity}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hvd_compress.lgc.serving", json.dumps(about)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        self.pid = self._process.pid
        self._queue: queue.Queue[tuple[bytes, bytes]] = queue.Queue(QUEUE)
        self._progress: dict[str, Any] = {}
        self._outcome: Outcome | None = None
        self._state: queue.Queue[bytes] = queue.Queue()
        self._dropped = 0
        self._longest = 0.0
        self._asked = False
        self._heard = 0.0
        self._lost = threading.Event()
        if state is not None:
            self._queue.put((b"L", state))
        for target in (self._write, self._read):
            threading.Thread(target=target, daemon=True, name=f"hvd_compress.lgc.{target.__name__}").start()

    def feed(self, vectors: Float32, entries: int) -> None:
        started = perf_counter()
        try:
            self._queue.put_nowait((b"V", _SAMPLE.pack(*vectors.shape, entries) + vectors.tobytes()))
        except queue.Full:
            self._dropped += 1
        self._longest = max(self._longest, perf_counter() - started)
        self._check()

    def stalled(self) -> bool:
        self._check()
        return bool(self._progress.get("stalled"))

    def finish(self) -> Outcome | None:
        if self._outcome is not None:
            return self._outcome
        self._check()
        if not self._asked:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait((b"F", b""))
                self._asked = True
                self._heard = monotonic()
        elif monotonic() - self._heard > LIMIT:
            raise TrainerDied(f"the process that trains the autoencoder has not answered for {LIMIT:.0f} s")
        return None

    def state(self) -> bytes:
        self._check()
        try:
            self._queue.put((b"S", b""), timeout=LIMIT)
            return self._state.get(timeout=LIMIT)
        except (queue.Full, queue.Empty) as error:
            raise TrainerDied("the process that trains the autoencoder does not answer") from error

    def report(self) -> dict[str, Any]:
        return {
            **{key: self._progress.get(key) for key in ("samples", "refused", "batches", "error", "seconds")},
            "dropped": self._dropped,
            "longest_feed": self._longest,
        }

    def close(self) -> None:
        """End the process."""
        self._lost.set()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((b"", b""))

    def _check(self) -> None:
        if self._lost.is_set() or self._process.poll() is not None:
            raise TrainerDied(f"the process that trains the autoencoder has ended (status {self._process.poll()})")

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            while True:
                kind, content = self._queue.get()
                if not kind:
                    return
                _send(self._process.stdin, kind, content)
        except (OSError, ValueError):
            self._lost.set()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while (frame := _receive(self._process.stdout)) is not None:
            kind, content = frame
            self._heard = monotonic()
            if kind == b"P":
                self._progress = json.loads(content)
            elif kind == b"S":
                self._state.put(content)
            else:
                self._outcome = _outcome(content)
        self._lost.set()


def _environment() -> dict[str, str]:
    """The child's: it imports what this process does, and is nobody's rank."""
    ranks = ("OMPI_", "PMIX_", "PMI_", "OPAL_", "HOROVOD_", "ORTE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ranks)}
    path = [entry for entry in sys.path if entry] + [str(Path.cwd())]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def _send(pipe: IO[bytes], kind: bytes, content: bytes) -> None:
    pipe.write(_FRAME.pack(kind, len(content)))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The next frame; None at the end."""
    with contextlib.suppress(OSError, ValueError):
        head = pipe.read(_FRAME.size)
        if len(head) == _FRAME.size:
            kind, length = _FRAME.unpack(head)
            content = pipe.read(length)
            if len(content) == length:
                return kind, content
    return None


def _outcome(content: bytes) -> Outcome:
    from hvd_compress.lgc.trainer import Outcome

    length = int.from_bytes(content[:4], "little")
    about = json.loads(content[4 : 4 + length])
    return Outcome(weights=content[4 + length :], **about)


def serve(about: dict[str, Any], source: IO[bytes], sink: IO[bytes]) -> None:
    """The process: train as long as there is no end in sight, and answer."""
    import torch

    torch.set_num_threads(1)
    trainer = trainer_of(Architecture.from_config(about["architecture"]), about["seed"], about["similarity"], None)
    inbox: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(QUEUE)

    def read() -> None:
        frame = _receive(source)
        while frame is not None:
            inbox.put(frame)
            frame = _receive(source)
        inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    seconds, wanted = 0.0, -1  # batches, once the outcome has been asked for
    while True:
        busy = trainer.ready and not trainer.stalled
        if wanted >= 0 and (not busy or trainer.batches >= wanted):
            _answer(trainer, b"F", b"", sink)
            wanted = -1
        try:
            frame = inbox.get(block=not busy)
        except queue.Empty:
            started = perf_counter()
            trainer.train(1)
            seconds += perf_counter() - started
        else:
            if frame is None:
                return
            if frame[0] == b"F":
                wanted = PER_STEP * trainer.samples
                continue
            _answer(trainer, *frame, sink)
        error = trainer.best if trainer.best < float("inf") else None
        progress = {"samples": trainer.samples, "refused": trainer.refused, "batches": trainer.batches}
        _send(
            sink,
            b"P",
            json.dumps({**progress, "error": error, "seconds": seconds, "stalled": trainer.stalled}).encode(),
        )


def _answer(trainer: Trainer, kind: bytes, content: bytes, sink: IO[bytes]) -> None:
    if kind == b"V":
        workers, length, entries = _SAMPLE.unpack(content[: _SAMPLE.size])
        trainer.add(np.frombuffer(content, np.float32, offset=_SAMPLE.size).reshape(workers, length), entries)
    elif kind == b"L":
        trainer.load_state(content)
    elif kind == b"S":
        _send(sink, b"S", trainer.state())
    else:
        outcome = asdict(trainer.finish())
        weights = outcome.pop("weights")
        text = json.dumps(outcome).encode()
        _send(sink, b"O", len(text).to_bytes(4, "little") + text + weights)


if __name__ == "__main__":
    os.nice(5)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(json.loads(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
