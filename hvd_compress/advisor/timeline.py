"""A worker's time: its main thread, its compression thread and its link, at the same time, each slower beside the
others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hvd_compress.advisor.cluster import Cluster
from hvd_compress.topology import ALL

TICK = 1e-10
"""Seconds that are nothing."""
FUSION_BYTES = 128 * 2**20
"""Horovod fuses up to so many (HOROVOD_FUSION_THRESHOLD)."""


@dataclass(eq=False)
class QueuedCollective:
    """A collective that is handed to Horovod, and whether it is done."""

    kind: str
    nbytes: float
    done: bool = False
    scope: str = ALL


@dataclass(eq=False)
class _Transfer:
    """Several collectives as one: first the overhead, while others may still join, then the bytes."""

    first: QueuedCollective
    remaining: float
    members: list[QueuedCollective] = field(default_factory=list)


@dataclass(eq=False)
class _Task:
    """Work for the compression thread, and what follows from it."""

    remaining: float
    then: Callable[[], object]


class Timeline:
    """Simulated seconds of one worker among ``workers``, all of which do the same at the same time."""

    def __init__(self, cluster: Cluster, workers: int) -> None:
        self.now = 0.0
        self._cluster, self._workers = cluster, workers
        self._queue: deque[QueuedCollective] = deque()
        self._transfer: _Transfer | None = None
        self._tasks: deque[_Task] = deque()

    def start(self, collective: QueuedCollective) -> QueuedCollective:
        """Hand a collective to Horovod; it begins when those before it are done."""
        self._queue.append(collective)
        self._next()
        return collective

    def submit(self, seconds: float, then: Callable[[], object]) -> None:
        """Let the compression thread work, after what it has to do already, and call ``then``."""
        self._tasks.append(_Task(max(seconds, TICK), then))

    def work(self, seconds: float) -> float:
        """Compute on the main thread for so many undisturbed seconds; return how many it took."""
        began = self.now
        while seconds > TICK:
            seconds -= self._pass(seconds)
        return self.now - began

    def wait(self, over: Callable[[], bool]) -> float:
        """Let the main thread wait until ``over`` is true; return the seconds."""
        began = self.now
        while not over():
            self._pass(None)
        return self.now - began

    def _pass(self, main: float | None) -> float:
        """Go to the next event, at the latest to when the main thread has worked ``main`` seconds; return how many of
        them it has."""
        transfer, task = self._transfer, self._tasks[0] if self._tasks else None
        moving = transfer is not None and bool(transfer.members)
        threads = (main is not None) + (task is not None)
        crowd = max(1.0, (threads + moving) / self._cluster.cores)
        slow = max(crowd, self._cluster.slowdown if transfer is not None else 1.0)
        stretch = self._cluster.busy.get(transfer.first.kind, 1.0) if transfer and moving and threads else 1.0
        spans = [main * slow] if main is not None else []
        spans += [task.remaining * slow] if task is not None else []
        spans += [transfer.remaining * stretch] if transfer is not None else []
        span = min(spans)
        self.now += span
        if task is not None:
            task.remaining -= span / slow
        if transfer is not None:
            transfer.remaining -= span / stretch
            if transfer.remaining <= TICK:
                self._arrived(transfer)
        if task is not None and task.remaining <= TICK:
            self._tasks.popleft()
            task.then()
        return span / slow

    def _arrived(self, transfer: _Transfer) -> None:
        if not transfer.members:
            self._fuse(transfer)
            return
        for member in transfer.members:
            member.done = True
        self._transfer = None
        self._next()

    def _next(self) -> None:
        if self._transfer is None and self._queue:
            self._transfer = _Transfer(self._queue.popleft(), self._cluster.agreement(self._workers))
            if self._transfer.remaining <= TICK:
                self._fuse(self._transfer)

    def _fuse(self, transfer: _Transfer) -> None:
        kind, scope, total = transfer.first.kind, transfer.first.scope, transfer.first.nbytes
        transfer.members.append(transfer.first)
        for other in [other for other in self._queue if (other.kind, other.scope) == (kind, scope)]:
            if total + other.nbytes <= FUSION_BYTES:
                total += other.nbytes
                transfer.members.append(other)
                self._queue.remove(other)
        transfer.remaining = max(self._cluster.transfer(kind, total, self._workers, scope), 2 * TICK)
