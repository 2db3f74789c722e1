"""Run a long command with one line that says it is alive; the whole output goes to a log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# What a build prints that a waiting person can use: progress of make and ninja, steps of CMake, setuptools and pip.
INTERESTING = re.compile(
    r"^\s*(?:(?P<percent>\[ *\d+%\]|\[\d+/\d+\]) (?P<what>.*)"
    r"|(?P<other>(?:Collecting|Downloading|Using cached|running|--) .*|Installing collected packages))"
)
LOG_EVERY_S = 20.0


def say(text: str, end: str = "\n") -> None:
    """Print, at once, to standard error: standard output is for results."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


class StepFailed(Exception):
    """A command failed; the message is for the person at the terminal and names the log."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP when a terminal is closed, end this process as an exception does, with status 128 + their
    number: by default they would end it at once, and leave the compilers that ``run`` started running."""
    signals = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Line:
    """A status line: rewritten in place on a terminal, printed every 20 seconds into a log."""

    def __init__(self, title: str) -> None:
        self.title, self.detail, self.started = title, "", time.monotonic()
        self._tty = sys.stderr.isatty()
        self._printed = self.started
        self._done = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Line:
        if not self._tty:
            say(f"setup: {self.title} ...")
        self._ticker.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._done.set()
        self._ticker.join()
        start = "\r\033[K" if self._tty else ""
        say(f"{start}setup: {self.title}: {'failed' if kind else 'done'} [{self._elapsed()}]")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def _tick(self) -> None:
        while not self._done.wait(0.5):
            if self._tty:
                columns = os.get_terminal_size(sys.stderr.fileno()).columns
                text = f"setup: {self.title} [{self._elapsed()}] {self.detail}"
                say(f"\r\033[K{text[: columns - 1]}", end="")
            elif time.monotonic() - self._printed >= LOG_EVERY_S:
                self._printed = time.monotonic()
                say(f"setup: {self.title} [{self._elapsed()}] {self.detail}")


def shorten(line: str) -> str | None:
    """The part of a line of build output worth showing, None if there is none."""
    found = INTERESTING.match(line)
    if not found:
        return None
    if found["other"]:
        return found["other"].strip()
    # "Building CXX object a/b/CMakeFiles/x.dir/common/operations.cc.o" → "operations.cc"
    return f"{found['percent']} {found['what'].rsplit('/', 1)[-1].removesuffix('.o')}"


def run(title: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> None:
    """Run ``command`` with its output appended to ``log``; raise StepFailed if it fails.

    The command gets a process group of its own, which is ended with this process (see ``ended_by_signals``): an
    interrupted set-up must not leave a compiler writing behind its back.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out, Line(title) as line:
        out.write(" ".join(["+", *map(str, command)]) + "\n")
        out.flush()
        child = subprocess.Popen(
            [str(part) for part in command],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            assert child.stdout is not None
            for text in child.stdout:
                out.write(text)
                out.flush()
                line.detail = shorten(text) or line.detail
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        if code:
            raise StepFailed(f"{title} failed (exit status {code}); the log is {log}\n" + tail(log))


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, indented, without the compiler's kilobyte-long command lines."""
    return "\n".join(f"    {text[:160]}" for text in log.read_text(errors="replace").splitlines()[-lines:])
