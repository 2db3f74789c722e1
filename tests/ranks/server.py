"""Ranks that are started once, and run one scenario after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.ranks.launching import start
from tests.ranks.scenario import LIMIT, Job, Scenario

START = 240
"""Seconds in which all ranks have imported their framework and found each other; a busy machine takes its time."""
GRACE = 10
"""Seconds that the other ranks get to end a scenario in which one has failed; most of them wait for it in vain."""


class Ranks:
    """The ranks of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = Path(tempfile.mkdtemp(prefix="ranks"))
        address = str(self.folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener, (self.folder / "output").open("w") as output:
            listener.bind(address)
            listener.listen()
            arguments = ["-m", "tests.ranks.serve", address, job.framework]
            self.process = start(job.launcher, job.ranks, arguments, output=output)
            self.processes: list[int] = []  # as files, which stay theirs when their numbers are given to others
            self.ranks: dict[Connection, int] = {}
            try:
                self._meet(listener)
            except BaseException:
                self.kill()
                raise

    def _meet(self, listener: socket.socket) -> None:
        """All ranks connect and say which process they are; then, when they have found each other, which rank."""
        deadline = time.monotonic() + START
        come: list[Connection] = []
        while len(self.ranks) < self.job.ranks:
            ready = wait([listener, *(set(come) - set(self.ranks))], timeout=1)
            if not ready and (self.process.poll() is not None or time.monotonic() > deadline):
                raise AssertionError(f"{self.job}: the ranks did not start\n{self.stacks()}\n{self.output()}")
            for one in ready:
                if one is listener:
                    come.append(Connection(listener.accept()[0].detach()))
                    self.processes.append(os.pidfd_open(come[-1].recv()))
                    continue
                assert isinstance(one, Connection)
                try:
                    rank, size = one.recv()
                except EOFError:
                    raise AssertionError(f"{self.job}: a rank ended before it began\n{self.output()}") from None
                assert size == self.job.ranks, f"{self.job}: Horovod says that there are {size} ranks"
                self.ranks[one] = rank
        assert sorted(self.ranks.values()) == list(range(self.job.ranks))

    def run(self, function: Callable[..., None], *arguments: Any, limit: float = LIMIT) -> str:
        """Run a function on all ranks; return what went wrong on any (an empty string: nothing)."""
        shown = len(self.output())
        for connection in self.ranks:
            with contextlib.suppress(BrokenPipeError):  # it is dead, as reading will say
                connection.send((function.__module__, function.__name__, arguments))
        problems: list[str] = []
        busy = set(self.ranks)
        deadline = time.monotonic() + limit
        while busy and time.monotonic() < deadline:
            for connection in wait(busy, timeout=max(0.0, deadline - time.monotonic())):
                assert isinstance(connection, Connection)
                try:
                    problem = connection.recv()
                except (EOFError, ConnectionResetError):
                    problem = "died"
                busy.discard(connection)
                if problem:
                    problems.append(f"rank {self.ranks[connection]}: {problem}")
                    deadline = min(deadline, time.monotonic() + GRACE)
        if busy:
            waiting = sorted(self.ranks[connection] for connection in busy)
            reason = f"waited {GRACE} s longer" if problems else f"took more than {limit} s"
            problems.append(f"ranks {waiting} {reason}\n{self.stacks()}")
        return "\n".join([*problems, "output:", self.output()[shown:][-12000:]]) if problems else ""

    def stacks(self) -> str:
        """Return where every rank is, as far as it can say."""
        self._signal(signal.SIGUSR1)
        time.sleep(1)
        files = sorted(self.folder.glob("*.stacks"))
        return "\n".join(f"process {file.stem} is at\n{file.read_text()}" for file in files)

    def output(self) -> str:
        """Return what the ranks have written so far."""
        return (self.folder / "output").read_text(errors="replace")

    def end(self) -> str:
        """End the ranks as a program ends; return what went wrong (an empty string: nothing)."""
        for connection in self.ranks:
            with contextlib.suppress(BrokenPipeError):
                connection.send(None)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            return f"{self.job}: does not end\n{self.stacks()}\n{self.output()[-12000:]}"
        else:
            return f"{self.job}: ended with {code}\n{self.output()[-12000:]}" if code else ""
        finally:
            self.kill()

    def kill(self) -> None:
        """End all processes, whatever they do, and forget what they wrote."""
        self._signal(signal.SIGKILL)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for process in self.processes:
            os.close(process)
        for connection in self.ranks:
            connection.close()
        shutil.rmtree(self.folder)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)


class Server:
    """Ranks of one job at a time: those of another would take their cores, for Horovod never rests."""

    def __init__(self) -> None:
        self._ranks: Ranks | None = None
        self._spoilt = False

    def run(self, job: Job, scenario: Scenario) -> None:
        """Run a scenario; raise an ``AssertionError`` that says what went wrong on any rank."""
        if self._spoilt and not scenario.last:
            self.end()
        self.call(job, scenario.function, limit=scenario.limit)
        self._spoilt |= scenario.last

    def call(self, job: Job, function: Callable[..., None], *arguments: Any, limit: float = LIMIT) -> None:
        """Run a function with arguments; raise an ``AssertionError`` as ``run`` does."""
        if self._ranks is not None and self._ranks.job != job:
            self.end()
        if self._ranks is None:
            self._ranks = Ranks(job)
        problem = self._ranks.run(function, *arguments, limit=limit)
        if problem:  # nobody knows what the ranks still wait for
            self._ranks.kill()
            self._ranks, self._spoilt = None, False
            raise AssertionError(f"{job}:\n{problem}")

    def end(self) -> None:
        """End the ranks that there are; raise an ``AssertionError`` if they do not end well."""
        ranks, spoilt = self._ranks, self._spoilt
        self._ranks, self._spoilt = None, False
        if ranks is not None and (problem := ranks.end()) and not spoilt:
            raise AssertionError(problem)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server whose ranks end with it."""
    server = Server()
    try:
        yield server
    finally:
        server.end()
