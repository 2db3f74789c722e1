"""A trainer in a process of its own beside the training: the worker's side of it. ``serving`` is the other."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from hvd_compress.kernels import Float32
from hvd_compress.lgc import frames
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.training import Outcome, TrainerDied

QUEUE = 64
"""Samples that wait for the process; more are dropped rather than waited for."""
LARGEST_SAMPLE = 1 << 29
"""Bytes of vectors beyond which a sample is dropped, too."""
LIMIT = 120.0
"""Seconds that the process may be silent when it has been asked something, before it counts as dead."""
STOPPED = 5.0
"""Seconds that it may be stopped meanwhile (SIGSTOP); a job that is suspended as a whole does not wait."""
LOOK = 0.05
"""Seconds between two looks at a process whose answer is waited for."""


class Process:
    """A Python of its own, at low priority, that is fed through a pipe.

    ``feed`` copies a sample to a bounded queue, and drops it where that is full; a thread writes, another reads. The
    process ends with this one, whatever happens to it.
    """

    kind = "process"

    def __init__(self, architecture: Architecture, seed: int, similarity: float, state: bytes | None) -> None:
        about = {"architecture": architecture.to_config(), "seed": seed, "similarity": similarity}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hvd_compress.lgc.serving", str(os.getpid()), json.dumps(about)],
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
            self._queue.put((frames.LOAD, state))
        for target in (self._write, self._read):
            threading.Thread(target=target, daemon=True, name=f"hvd_compress.lgc.{target.__name__}").start()

    def feed(self, vectors: Float32, entries: int) -> None:
        started = perf_counter()
        if vectors.nbytes > LARGEST_SAMPLE or not self._offer(frames.SAMPLE, frames.sample_content(vectors, entries)):
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
            self._asked = self._offer(frames.FINISH, b"")
            self._heard = monotonic()
        elif monotonic() - self._heard > LIMIT:
            raise TrainerDied(f"the process that trains the autoencoder has not answered for {LIMIT:.0f} s")
        return None

    def state(self) -> bytes:
        asked, self._heard = False, monotonic()
        ran = self._heard
        while True:
            with contextlib.suppress(queue.Full, queue.Empty):
                if asked:
                    return self._state.get(timeout=LOOK)
                self._queue.put((frames.STATE, b""), timeout=LOOK)
                asked = True
            self._check()
            now = monotonic()
            if not self._is_stopped():
                ran = now
            if now - ran > STOPPED:
                raise TrainerDied("the process that trains the autoencoder is stopped")
            if now - self._heard > LIMIT:
                raise TrainerDied(f"the process that trains the autoencoder has not answered for {LIMIT:.0f} s")

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
        self._offer(b"", b"")

    def _offer(self, kind: bytes, content: bytes) -> bool:
        """Return whether there was room in the queue."""
        try:
            self._queue.put_nowait((kind, content))
        except queue.Full:
            return False
        return True

    def _check(self) -> None:
        if self._lost.is_set() or self._process.poll() is not None:
            raise TrainerDied(f"the process that trains the autoencoder has ended (status {self._process.poll()})")

    def _is_stopped(self) -> bool:
        with contextlib.suppress(ChildProcessError):  # this is not the process that started it, but a fork of that
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            while True:
                kind, content = self._queue.get()
                if not kind:
                    return
                frames.send(self._process.stdin, kind, content)
        except (OSError, ValueError):
            self._lost.set()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while (frame := frames.receive(self._process.stdout)) is not None:
                kind, content = frame
                self._heard = monotonic()
                if kind == frames.PROGRESS:
                    self._progress = json.loads(content)
                elif kind == frames.STATE:
                    self._state.put(content)
                else:
                    self._outcome = frames.outcome_of(content)
        finally:
            self._lost.set()


def _environment() -> dict[str, str]:
    """Return the process's environment: it imports what this one does, but nothing that happens to lie in the working
    folder, and is nobody's rank."""
    ranks = ("OMPI_", "PMIX_", "PMI_", "OPAL_", "HOROVOD_", "ORTE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ranks)}
    working = Path.cwd()
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != working]
    package = str(Path(__file__).resolve().parents[2])  # if that is the working folder, it comes after all others
    return {**kept, "PYTHONPATH": os.pathsep.join([*path, package]), "OMP_NUM_THREADS": "1"}
