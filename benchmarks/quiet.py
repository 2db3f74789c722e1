"""How much of this machine's processors other programs use: steps beside them tell little."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BOOT = Path("/proc/sys/kernel/random/boot_id")
CALM = 0.7
"""Processors that others may use."""
SAMPLE = 0.1


def boot() -> str:
    """The same for all processes of one machine, and for no other."""
    return BOOT.read_text() if BOOT.exists() else ""


def busy() -> float:
    """Seconds for which this machine's processors have worked, together; 0 where nobody tells."""
    if not STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, STAT.read_text().splitlines()[0].split()[1:])
    return float(user + nice + system + irq + softirq) / float(os.sysconf("SC_CLK_TCK"))


class Watch:
    """From its making to ``stop``: what this process used, and what others did."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time(), busy()

    def stop(self) -> None:
        self.elapsed = time.perf_counter() - self._began[0]
        self.used = time.process_time() - self._began[1]
        self._busy = busy() - self._began[2]

    def others(self, used: float) -> float:
        """Processors that others used on average; ``used``: seconds of all of ours on this machine."""
        return max(0.0, (self._busy - used) / self.elapsed)


def wait(limit: float) -> None:
    """Until others leave the machine alone, as it seems from here, for ``limit`` seconds at most."""
    end = time.perf_counter() + limit
    while time.perf_counter() + SAMPLE < end:
        watch = Watch()
        time.sleep(SAMPLE)
        watch.stop()
        if watch.others(watch.used) <= 2 * CALM:  # our other ranks on this machine are not quite idle, either
            return
