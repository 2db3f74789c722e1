"""How the workers' vectors come to the trainer in phase 2.

By the exchange's all-gather, which then is the update as well; or, where the job runs over MPI, as messages of mpi4py
to the leader alone, on a communicator that nobody else uses. Nothing here waits for a message: a worker starts a send
and looks later whether it is done, and the leader takes what has come when it begins its next step. Nor is there a
thread, or a farewell at the end, that could call MPI while Horovod finalizes it: the first rank that ends makes Horovod
do that on all others, in a thread of its own.

A message is uint64 step, uint32 checksum of the bucket's name, uint32 length of the vector, then the vector, float32.
"""

from __future__ import annotations

import atexit
import importlib
import struct
import threading
import zlib
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from hvd_compress.kernels import Float32, UInt8
from hvd_compress.lgc.training import Sample
from hvd_compress.phased import MPIJob

ROUTES = ("auto", "mpi", "allgather")
SAID = {"mpi": "mpi4py, a communicator of its own", "allgather": "the exchange's all-gather"}

PENDING = 64
"""Messages that a worker has under way; beyond that it drops vectors."""
LATE = 4
"""Steps that the leader waits for the rest of a sample."""

_HEAD = struct.Struct("<QII")


class Arrival(NamedTuple):
    """A message on its way in: the sender's rank, where its bytes go, and whether they are there."""

    source: int
    content: UInt8
    done: Callable[[], bool]


class Messages(Protocol):
    """What a route needs of a communicator. Nothing blocks."""

    def send(self, content: UInt8, to: int) -> Callable[[], bool]:
        """Start to send; return what tells whether ``content`` may be changed again."""
        ...

    def receive(self) -> Arrival | None:
        """Start to receive a message, and return it; None if there is none."""
        ...

    def over(self) -> bool:
        """Return whether nothing may be asked of it any more."""
        ...


class _Own(NamedTuple):
    vector: Float32
    entries: int
    root: int
    name: str


def choose(wanted: str, mpi: MPIJob | None, rank: int, workers: int, inline: bool) -> tuple[str, str]:
    """Return the route to take, and why not another if that is worth knowing: in words that are the same on every rank.

    Raises:
        ValueError: ``"mpi"`` is wanted and cannot be.
    """
    if workers == 1 or wanted == "allgather" or (wanted == "auto" and (mpi is None or inline)):
        return "allgather", ""
    problem = "this job does not run over MPI with threads" if mpi is None else _problem(mpi, rank)
    if not problem:
        return "mpi", ""
    if wanted == "mpi":
        raise ValueError(
            f"route='mpi' cannot be: {problem}; start the job with mpirun or horovodrun --mpi, and install mpi4py, "
            "built against the MPI in use; or leave it at route='auto'"
        )
    return "allgather", problem


def _problem(mpi: MPIJob, rank: int) -> str:
    try:
        library = _mpi4py()
    except (ImportError, RuntimeError):
        return "mpi4py cannot be imported"
    if not library.Is_initialized() or library.Is_finalized():
        return "mpi4py uses another MPI than the job"
    if library.Query_thread() < library.THREAD_MULTIPLE:
        return "MPI was not initialized for several threads"
    if library.COMM_WORLD.Get_rank() != mpi.ranks[rank]:
        return "ranks are not those of MPI"
    return ""


def _mpi4py() -> Any:
    """Return mpi4py.MPI, which leaves it to the job to initialize and finalize MPI."""
    package = importlib.import_module("mpi4py")
    package.rc.initialize = False
    package.rc.finalize = False
    return importlib.import_module("mpi4py.MPI")


class Communicator:
    """``Messages`` on a new communicator of the job's ranks. All of them must make it at about the same time."""

    def __init__(self, job: MPIJob) -> None:
        self._mpi = _mpi4py()
        world = self._mpi.COMM_WORLD
        group = world.Get_group().Incl(list(job.ranks))
        self._comm = world.Create_group(group, zlib.crc32(job.label.encode()) & 0x7FFF)
        group.Free()

    def send(self, content: UInt8, to: int) -> Callable[[], bool]:
        tested: Callable[[], bool] = self._comm.Isend(content, to).Test
        return tested

    def receive(self) -> Arrival | None:
        status = self._mpi.Status()
        message = self._comm.Improbe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status)
        if message is None:
            return None
        content = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
        return Arrival(status.Get_source(), content, message.Irecv(content).Test)

    def over(self) -> bool:
        return bool(self._mpi.Is_finalized())


class Route:
    """The messages of one compressor on one rank. ``since``: the step in which it was made, of which nothing is sent:
    some ranks may have been further in it than others.

    It lives until the process ends: MPI may have its hands on what it sends.
    """

    def __init__(self, messages: Messages, rank: int, workers: int, leader: int, since: int) -> None:
        self.since = since
        self._messages = messages
        self._rank = rank
        self._workers = workers
        self._leader = leader
        self._lock = threading.Lock()
        self._sending: list[tuple[UInt8, Callable[[], bool]]] = []
        self._arriving: list[Arrival] = []
        self._own: dict[tuple[int, int], _Own] = {}
        self._others: dict[tuple[int, int], dict[int, Float32]] = {}
        self._counts = {"sent": 0, "dropped": 0} if rank != leader else {"received": 0, "incomplete": 0}
        self._longest = 0.0

    def send(self, step: int, name: str, vector: Float32) -> int:
        """Start to send a worker's vector; return the bytes, none if there are too many under way."""
        started = perf_counter()
        if self._messages.over():
            return 0
        with self._lock:
            self._sending = [(content, done) for content, done in self._sending if not done()]
            if len(self._sending) >= PENDING:
                self._counts["dropped"] += 1
                return 0
            content: UInt8 = np.empty(_HEAD.size + vector.nbytes, np.uint8)
            head = _HEAD.pack(step, zlib.crc32(name.encode()), len(vector))
            content[: _HEAD.size] = np.frombuffer(head, np.uint8)
            content[_HEAD.size :].view(np.float32)[:] = vector
            self._sending.append((content, self._messages.send(content, self._leader)))
            self._counts["sent"] += 1
            self._longest = max(self._longest, perf_counter() - started)
        return len(content)

    def keep(self, step: int, name: str, vector: Float32, entries: int, root: int) -> None:
        """Keep the leader's own vector, which the others' join."""
        with self._lock:
            self._own[step, zlib.crc32(name.encode())] = _Own(vector, entries, root, name)

    def collect(self) -> list[Sample]:
        """Return the samples that have become complete on the leader, in the order of steps."""
        started = perf_counter()
        if self._messages.over():
            return []
        with self._lock:
            self._receive()
            complete = []
            for key, own in sorted(self._own.items(), key=lambda item: (item[0][0], item[1].name)):
                rows = {**self._others.get(key, {}), self._rank: own.vector}
                if len(rows) == self._workers:
                    del self._own[key], self._others[key]
                    if len({len(row) for row in rows.values()}) > 1:
                        self._counts["incomplete"] += 1
                        continue
                    # the root, whose indices and signs these are, comes first
                    order = [(own.root + place) % self._workers for place in range(self._workers)]
                    vectors = np.stack([rows[rank] for rank in order])
                    complete.append(Sample(key[0], own.name, vectors, own.entries))
            self._forget()
            self._longest = max(self._longest, perf_counter() - started)
        return complete

    def report(self) -> dict[str, Any]:
        """Return counts, and the longest time that a call took."""
        return {**self._counts, "longest_send" if self._rank != self._leader else "longest_receive": self._longest}

    def linger(self) -> None:
        """Do nothing: whoever refers to this at the end of the process keeps what is under way until MPI is
        finalized."""

    def _receive(self) -> None:
        while (arrival := self._messages.receive()) is not None:
            self._arriving.append(arrival)
        # looked at first: what is not done must be asked again
        done = [arrival.done() for arrival in self._arriving]
        for arrival, there in zip(self._arriving, done, strict=True):
            if there:
                self._take(arrival.source, arrival.content)
        self._arriving = [arrival for arrival, there in zip(self._arriving, done, strict=True) if not there]

    def _take(self, source: int, content: UInt8) -> None:
        if len(content) < _HEAD.size:
            return
        step, bucket, length = _HEAD.unpack(content[: _HEAD.size].tobytes())
        if len(content) == _HEAD.size + 4 * length:
            self._counts["received"] += 1
            self._others.setdefault((step, bucket), {})[source] = content[_HEAD.size :].view(np.float32)

    def _forget(self) -> None:
        """Give up what will not become complete."""
        newest = max((step for step, _ in (*self._own, *self._others)), default=0)
        for key in [key for key in self._own if key[0] < newest - LATE]:
            del self._own[key]
            self._counts["incomplete"] += 1
        for key in [key for key in self._others if key[0] < newest - LATE]:
            del self._others[key]


def open_route(job: MPIJob, rank: int, workers: int, leader: int, since: int) -> Route:
    """Return the route over MPI, on a new communicator; all ranks of the job at about the same time."""
    route = Route(Communicator(job), rank, workers, leader, since)
    atexit.register(route.linger)  # Horovod's own, which finalizes MPI, was registered before and so comes after
    return route
