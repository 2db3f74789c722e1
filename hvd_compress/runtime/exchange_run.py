"""One exchange under way: from its first collective until its outcome is decided."""

from __future__ import annotations

import copy
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

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
    sent_array,
)
from hvd_compress.kernels import Float32
from hvd_compress.phased import phases
from hvd_compress.runtime.transport import Handle, Transport
from hvd_compress.topology import SCOPES


class ExchangeRun:
    """Runs a compressor's exchange of one bucket.

    ``launch`` starts it and ``advance`` takes it through its collectives until it has ``landed``: the last result is
    in. Then ``decode`` computes the mean, and ``commit`` or ``rollback`` decides what becomes of the memory and of the
    algorithm's state. ``decode`` without a buffer commits first, for the mean goes where the old memory was. What it
    exchanges are gradients, which the compressor may clip, or anything else, which it ``clips`` not.
    """

    def __init__(
        self, compressor: Compressor, bucket: Bucket, label: str, plan: str | None = None, *, clips: bool = True
    ) -> None:
        asked = phases(compressor)
        bucket.plan = asked.plan(bucket) if plan is None else plan
        self.schedule = asked.plans(bucket)[bucket.plan]
        self.tells = asked.tells(bucket.plan, self.schedule)
        self.bucket = bucket
        self.handle: Handle = None
        self.task: Future[float] | None = None  # a part of the algorithm that a worker thread does; returns its seconds
        self.landed = False
        self.flags = 0
        self.sent_bytes = dict.fromkeys(SCOPES, 0)
        self.mean: Float32
        self._state_before = copy.deepcopy(bucket.state)
        self._compressor = compressor
        self._clips = clips
        self._label = label
        exchange: Any = compressor.exchange(bucket)
        if not isinstance(exchange, Generator):
            raise TypeError(
                f"{type(compressor).__name__}.exchange must be a generator, which yields its collectives (gathered = "
                f"yield AllGather(payload)) and returns the mean; it returned {type(exchange).__name__}"
            )
        self._exchange: Exchange = exchange
        self._round = 0
        self._gathers = False
        self._payload_bytes = 0
        self.decided = False  # what becomes of the memory
        self._result: Array
        bucket.extra_sent_bytes = 0
        bucket.requests = requests(compressor)
        bucket.agreed_requests = 0

    def launch(self, transport: Transport) -> None:
        """Run the algorithm up to its first collective and start that. Before it, gradients are clipped."""
        if self._clips:
            self._compressor.limit_gradients(self.bucket)
        self._start(transport, next(self._exchange, None))

    def advance(self, transport: Transport) -> None:
        """Take the result of the collective that is done and start the next, or land."""
        result = transport.result(self.handle)
        if self._gathers:
            if result.ndim != 2:
                raise ValueError(
                    f"{self.bucket.name}: the ranks sent payloads of different sizes: {transport.workers} of them "
                    f"{result.size} bytes in all, this one {self._payload_bytes}; a size must not depend on data"
                )
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
        self.flags |= self.bucket.agreed_requests

    def complete(self, transport: Transport) -> None:
        """Bring an exchange that stands alone, and has been launched, to its end, blocking."""
        while not self.landed:
            transport.wait(self.handle)
            self.advance(transport)
        if self.flags & header.NONFINITE:
            self.abandon()
        else:
            self.decode()

    def reserve(self) -> None:
        """See to it that there is room to decode, as far as a device can tell: what was received is copied to it.

        Nothing is decided yet, and so nothing is lost. Raise MemoryError if there is not.
        """
        on_host = self._result.nbytes if isinstance(self._result, np.ndarray) else 0
        arrays = self._compressor.decoding_arrays * 4 * self.bucket.size
        self.bucket.kernels.reserve(on_host + arrays)

    def decode(self, out: Float32 | None = None) -> None:
        """Let the algorithm compute the mean from the last result. With ``out``, a buffer for the mean, the memory
        stays undecided; without, it is committed."""
        if out is None:
            self.commit()
        else:
            self.bucket.memory.stage(out)
        try:
            self._exchange.send(self._result)
        except StopIteration as stop:
            mean, size = stop.value, self.bucket.size
            if not self.bucket.kernels.is_vector(mean, size):
                got = f"{mean.dtype} {mean.shape}" if isinstance(mean, np.ndarray) else type(mean).__name__
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange must return the mean, float32 of shape ({size},), "
                    f"got {got}"
                ) from None
            # a mean that the exchange returned in a workspace or in the memory would change under its owner's hands
            self.mean = self.bucket.kernels.copy(mean) if self.bucket.shares(mean) else mean
            self.bucket.memory.mend()
            self._judge_mean()
            return
        except NonFiniteGradient:
            if self._compressor.error_feedback:  # the memory is committed; the others' too
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange raised NonFiniteGradient after its last collective, "
                    "where the memory cannot be left as it was any more; raise it after an earlier one"
                ) from None
            self.mean = self.bucket.kernels.empty(self.bucket.size)
            self.mean[:] = _fill(self._compressor)
            return
        raise TypeError(f"{type(self._compressor).__name__}.exchange yields more collectives than its schedule has")

    def _judge_mean(self) -> None:
        """Where the workers do not tell each other of what is not finite, the mean says it, alike to all of them."""
        if self._compressor.nonfinite == "zero" and not self.tells and not self.bucket.kernels.all_finite(self.mean):
            self.mean[:] = 0
            self.flags |= header.NONFINITE

    def commit(self) -> None:
        """Keep what the exchange leaves over, unless the outcome has been decided before."""
        if not self.decided:
            self.decided = True
            self.bucket.memory.commit()

    def rollback(self) -> Float32:
        """Give the exchange up: leave the memory and the algorithm's state as they were before it.

        Returns a buffer that may be used for the mean. A memory that has been committed stays so."""
        self.decided = True
        with suppress(ValueError):  # another thread of a graph that has failed is still inside the algorithm
            self._exchange.close()
        self.bucket.state.clear()
        self.bucket.state.update(self._state_before)
        self.bucket.target = self.bucket.sent = 0
        return self.bucket.memory.rollback()

    def abandon(self, out: Float32 | None = None) -> None:
        """Give the exchange up because a gradient was not finite; the mean, in ``out`` if that is given, says so."""
        buffer = self.rollback()
        self.mean = buffer if out is None else out
        self.mean[:] = _fill(self._compressor)

    def _start(self, transport: Transport, collective: Collective | None) -> None:
        if type(collective) is not self.schedule[self._round]:
            raise TypeError(
                f"{type(self._compressor).__name__}.exchange yielded {type(collective).__name__} where its schedule "
                f"has {self.schedule[self._round].__name__}"
            )
        self._gathers = isinstance(collective, AllGather)
        if isinstance(collective, AllGather):
            if not header.begins(collective.payload):
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange yielded a payload without the common header, into "
                    "which flags are written: make it with bucket.payload, and write behind its first HEADER_BYTES"
                )
            self._payload_bytes = len(collective.payload)
            header.set_flags(collective.payload, self.bucket.requests | (0 if self._sound() else header.NONFINITE))
        assert collective is not None
        if not isinstance(collective, Broadcast) or self._is_root(collective, transport):
            self.sent_bytes[collective.scope] += sent_array(collective).nbytes
        self.handle = transport.start(collective, f"{self._label}.{self.bucket.name}.round{self._round}")
        self._round += 1

    @staticmethod
    def _is_root(collective: Broadcast, transport: Transport) -> bool:
        return transport.topology.members(collective.scope, transport.rank)[collective.root] == transport.rank

    def _sound(self) -> bool:
        """Return whether the gradient is finite and, where this is the last chance to tell, what is left over too."""
        last = self._round + 1 == len(self.schedule)
        return self.bucket.finite and (not last or self.bucket.memory.sound())


def requests(compressor: Compressor) -> int:
    """Return what this worker asks of a step that begins; without a memory there is nothing to flush or to keep."""
    if not compressor.error_feedback:
        return 0
    runtime = compressor.runtime
    return header.FLUSH * runtime.flush_requested | header.DISCARD * runtime.discard_requested


def _fill(compressor: Compressor) -> float:
    """Return what the means of a step are in which a gradient was not finite somewhere."""
    return 0.0 if compressor.nonfinite == "zero" else np.nan
