"""One exchange under way, and what it needs of a transport."""

from __future__ import annotations

import copy
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import (
    AllGather,
    Array,
    Broadcast,
    Bucket,
    Collective,
    Exchange,
    NonFiniteGradient,
)
from hvd_compress.kernels import Float32
from hvd_compress.phased import phases

Handle = Any
"""A started collective, as its transport knows it."""


class Transport(Protocol):
    """Carries collectives among ``workers`` workers; all of them start the same ones under the same names."""

    rank: int
    workers: int
    simulated: bool
    """Whether all workers are in this process."""
    mpi: tuple[int, ...] | None
    """The workers' ranks in MPI's ``COMM_WORLD``, if the job runs over MPI and may call it from several threads."""

    def start(self, collective: Collective, name: str) -> Handle:
        """Start without blocking. The arrays stay untouched by the caller until the result is there."""
        ...

    def done(self, handle: Handle) -> bool:
        """Whether ``result`` would not block."""
        ...

    def wait(self, handle: Handle) -> None:
        """Block until done. Raises if the collective failed; it fails everywhere."""
        ...

    def result(self, handle: Handle) -> Array:
        """The result of a collective that is done (see the collective's class); may be asked for once."""
        ...


def mpi_ranks(horovod: Any, process_set: Any) -> tuple[int, ...] | None:
    """``Transport.mpi`` of a process set of Horovod, which is handed over as its module of a framework."""
    if not (horovod.mpi_built() and horovod.mpi_enabled() and horovod.mpi_threads_supported()):
        return None
    return tuple(process_set.ranks)


class ExchangeRun:
    """From ``launch`` through its collectives until it has ``landed`` (the last result is in), then ``decode``."""

    def __init__(self, compressor: Compressor, bucket: Bucket, label: str, plan: str | None = None) -> None:
        answers = phases(compressor)
        bucket.plan = answers.plan(bucket) if plan is None else plan
        self.schedule = answers.plans(bucket)[bucket.plan]
        self.bucket = bucket
        self.handle: Handle = None
        self.task: Future[float] | None = None  # a part of the algorithm that a worker thread does; returns its seconds
        self.landed = False
        self.flags = 0
        self.sent_bytes = 0
        self.mean: Float32
        self._state_before = copy.deepcopy(bucket.state)
        self._compressor = compressor
        self._label = label
        self._exchange: Exchange = compressor.exchange(bucket)
        self._round = 0
        self._gathers = False
        self._result: Array
        bucket.extra_sent_bytes = 0
        bucket.flush = compressor.runtime.flush_requested and compressor.error_feedback
        bucket.flush_agreed = False

    def launch(self, transport: Transport) -> None:
        """Run the algorithm up to its first collective and start that."""
        self._start(transport, next(self._exchange, None))

    def advance(self, transport: Transport) -> None:
        """Take the result of the collective that is done and start the next, or land."""
        result = transport.result(self.handle)
        if self._gathers:
            if result.ndim != 2:
                raise ValueError(f"{self.bucket.name}: the ranks sent payloads of different sizes")
            self.flags |= header.flags(result)
        if self._round == len(self.schedule):
            self._result = result
            self.landed = True
            return
        try:
            self._start(transport, self._exchange.send(result))
        except NonFiniteGradient:
            self.flags |= header.NONFINITE
            self.landed = True
        except StopIteration:
            self._start(transport, None)
        if self.bucket.flush_agreed:
            self.flags |= header.FLUSH

    def land(self, transport: Transport) -> None:
        """Complete an exchange that stands alone, blocking."""
        while not self.landed:
            transport.wait(self.handle)
            self.advance(transport)
        if self.flags & header.NONFINITE:
            self.abandon()
        else:
            self.decode()

    def decode(self, out: Float32 | None = None) -> None:
        """Commit the memory and let the algorithm compute the mean from the last result; with ``out``, the memory is
        only staged, and ``out`` a buffer for the mean."""
        if out is None:
            self.bucket.memory.commit()
        else:
            self.bucket.memory.stage(out)
        try:
            self._exchange.send(self._result)
        except StopIteration as stop:
            mean, size = stop.value, self.bucket.size
            if not isinstance(mean, np.ndarray) or mean.shape != (size,) or mean.dtype != np.float32:
                got = f"{mean.dtype} {mean.shape}" if isinstance(mean, np.ndarray) else type(mean).__name__
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange must return the mean, float32 of shape ({size},), "
                    f"got {got}"
                ) from None
            self.mean = mean
            return
        except NonFiniteGradient:
            if self._compressor.error_feedback:  # the memory is committed; the others' too
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange raised NonFiniteGradient after its last collective, "
                    "where the memory cannot be left as it was any more; raise it after an earlier one"
                ) from None
            self.mean = np.full(self.bucket.size, np.nan, np.float32)
            return
        raise TypeError(f"{type(self._compressor).__name__}.exchange yields more collectives than its schedule has")

    def abandon(self) -> None:
        """Give the exchange up: the memory and the algorithm's state are as before, the mean is NaN."""
        self._exchange.close()
        self.bucket.state.clear()
        self.bucket.state.update(self._state_before)
        self.mean = self.bucket.memory.rollback()
        self.mean[:] = np.nan

    def _start(self, transport: Transport, collective: Collective | None) -> None:
        if type(collective) is not self.schedule[self._round]:
            raise TypeError(
                f"{type(self._compressor).__name__}.exchange yielded {type(collective).__name__} where its schedule "
                f"has {self.schedule[self._round].__name__}"
            )
        self._gathers = isinstance(collective, AllGather)
        if isinstance(collective, AllGather):
            flags = (0 if self.bucket.finite else header.NONFINITE) | (header.FLUSH if self.bucket.flush else 0)
            header.set_flags(collective.payload, flags)
            self.sent_bytes += collective.payload.nbytes
        else:
            assert collective is not None
            if not isinstance(collective, Broadcast) or collective.root == transport.rank:
                self.sent_bytes += collective.values.nbytes
        self.handle = transport.start(collective, f"{self._label}.{self.bucket.name}.round{self._round}")
        self._round += 1
