"""The exchanges of a step that are under way on a transport, and which thread their algorithms run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import suppress
from time import perf_counter

from hvd_compress.kernels import Float32
from hvd_compress.runtime.buckets import ParameterBucket, naming
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.runtime.transport import Handle, Transport


class ExchangesUnderWay:
    """Begins exchanges, and brings each to its last result.

    With a ``worker`` of one thread the algorithms run there, one after the other in the order in which they were
    begun; without one they run on the thread that calls.
    """

    def __init__(self, core: StepCore, transport: Transport, worker: Executor | None) -> None:
        self.transport = transport
        self.buckets: list[ParameterBucket] = []
        """Those whose exchanges have begun in this step, in that order."""
        self._core = core
        self._worker = worker

    def begin(
        self,
        bucket: ParameterBucket,
        pieces: Sequence[Float32],
        finite: bool,
        checks: Sequence[Callable[[], bool]] = (),
    ) -> None:
        """Begin a bucket's exchange; the arguments are those of ``StepCore.begin``. ``checks`` tell of more gradients
        outside the buckets whether they are finite, and are asked where the algorithm runs."""
        with naming(bucket.bucket):
            run = self._core.begin(bucket, pieces, finite)
        self.buckets.append(bucket)

        def launch() -> None:
            if not all(check() for check in checks):
                bucket.bucket.overflow = True
            run.launch(self.transport)

        self._work(run, launch)

    def advance(self) -> None:
        """Begin the later rounds of exchanges whose collectives are done, without waiting."""
        for bucket in self.buckets:
            run = bucket.exchange
            if len(run.schedule) > 1:
                while self._join(run, block=False) and not run.landed and self.transport.done(run.handle):
                    self._go_on(run)

    def await_worker(self) -> None:
        """Wait until the worker has done all that it was given."""
        wait([run.task for run in self._runs() if run.task is not None])

    def landing(self) -> Iterator[Handle]:
        """Bring every exchange to its last result; yield every handle that must be done before the iteration goes
        on."""
        while waiting := [run for run in self._runs() if not run.landed]:
            for run in waiting:
                self._join(run)
                if not run.landed:
                    yield run.handle
                    self._go_on(run)
                    self._join(run)

    def cease(self) -> None:
        """Wait until nothing of a step is left to the worker, whatever came of it."""
        for bucket in self.buckets:
            if bucket.run is not None and bucket.run.task is not None:
                with suppress(BaseException):
                    bucket.run.task.result()

    def _runs(self) -> list[ExchangeRun]:
        return [bucket.exchange for bucket in self.buckets]

    def _go_on(self, run: ExchangeRun) -> None:
        self._work(run, lambda: run.advance(self.transport))

    def _work(self, run: ExchangeRun, work: Callable[[], object]) -> None:
        """Do a part of an exchange's algorithm: here, or on the worker."""

        def timed() -> float:
            started = perf_counter()
            with naming(run.bucket):
                work()
            return perf_counter() - started

        if self._worker is None:
            self._core.total.compress += timed()
        else:
            run.task = self._worker.submit(timed)

    def _join(self, run: ExchangeRun, block: bool = True) -> bool:
        """Return whether the worker is done with its part; with ``block``, wait for it. Raise what it raised."""
        if run.task is not None:
            if not (block or run.task.done()):
                return False
            started = perf_counter()
            self._core.total.compress += run.task.result()
            self._core.total.wait += perf_counter() - started
            run.task = None
        return True
