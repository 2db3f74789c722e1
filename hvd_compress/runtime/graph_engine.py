"""The scheduler that a graph calls: exchanges advance when the graph says so, memories commit late.

A graph is laid out once and then runs by itself: nothing in it can wait until all gradients of the step have come
back. So every bucket decodes as soon as its own last collective is done, and what becomes of the memories is decided
when nothing is under way any more: at the first call of the next step, or when the state is asked for. If any gradient
of the step was flagged as not finite, on any worker, all memories stay as they were.

The calls of a step: ``launch``, ``advance`` between rounds, ``land``; and ``rest`` and ``flushed`` if ``land`` says so.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from hvd_compress import kernels
from hvd_compress.codecs import header
from hvd_compress.compressor import Collectives, Compressor
from hvd_compress.exchange import AllGather, AllReduce, Array, Broadcast, Bucket
from hvd_compress.kernels import Float32, UInt8
from hvd_compress.runtime.agreement import check_proposals
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.runtime.graph_step import GraphStep, Slot, TracedCall, running
from hvd_compress.runtime.graph_transport import CollectiveSpec, GraphTransport, PendingCollective, try_out

REPORTS = 8
"""Steps that Horovod does by itself are counted in parts of what is left of them, so that there are several times."""
SPARE_MEANS = 3
"""Buffers for means that a bucket keeps: TensorFlow may hold the last step's while the next is decoded."""

_log = logging.getLogger(__name__)


class GraphEngine:
    """See the module's docstring. ``gather`` brings every worker's record (uint8) together, blocking."""

    def __init__(
        self,
        compressor: Compressor,
        label: str,
        rank: int,
        workers: int,
        gather: Callable[[UInt8], UInt8],
        mpi: tuple[int, ...] | None = None,
    ) -> None:
        self.label = label
        self.rank = rank
        self.workers = workers
        self._compressor = compressor
        self._gather: Callable[[UInt8], UInt8] | None = gather
        self._transport = GraphTransport(rank, workers, mpi)
        self._core = StepCore(compressor, label, rank, workers, mpi=mpi)
        self._kernels = kernels.get()
        self._lock = threading.RLock()
        self._slots: list[Slot] = []
        self._begun = 0  # the step that was begun last
        self._plain = 0, 0  # steps that Horovod does by itself, and the bytes of each
        self.plain_left: Callable[[], int] = lambda: 0
        """Tells how many of these are still to come; the graph counts them."""
        compressor.runtime.statistics.settle = self.settle

    def prepare(self, weights: Mapping[str, int]) -> dict[str, str]:
        """Return the kinds of a call's parameters; ``weights`` as in ``Preparation``. What is wrong is said before the
        first step, on all ranks."""
        self._core.prepare(weights, agreed=self._gather is None)
        return self._core.kinds

    def proposal(self) -> UInt8:
        """Return what this worker is about to do in the calls traced so far, for the others to compare."""
        layout = [[size for _, size, _ in slot.members] for slot in self._slots]
        return self._core.propose(
            list(self._core.parameters()), self._step, layout, complete=False, compare_names=False
        )

    def slot(self, members: Sequence[Parameter]) -> Slot:
        """Return the bucket of these parameters: the same one whenever the same call is traced again.

        Another set of parameters has another bucket. A parameter's memory exists once: where the last step that
        reduced it left it, and from there it moves to the bucket of the next.
        """
        wanted = tuple(members)
        found = next((slot for slot in self._slots if slot.members == wanted), None)
        if found is not None:
            return found
        names = {parameter.name for parameter in wanted}
        with self._lock:
            rivals = [slot for slot in self._slots if not names.isdisjoint(slot.parameters.parts)]
            self._settle_all(rivals)
            slot = Slot(self._core.new_bucket(f"bucket{len(self._slots)}", wanted), rivals=rivals)
            for rival in rivals:
                rival.rivals.append(slot)
            self._slots.append(slot)
        return slot

    def standalone(self, size: int, name: str) -> Slot:
        """Make a bucket outside any optimizer: it has no memory, and no step."""
        return Slot(self._core.standalone(name, size))

    def rounds(self, slot: Slot) -> dict[str, list[CollectiveSpec]]:
        """Return the collectives of every plan of a slot's exchange. Those that are not declared to the dtype are found
        by a trial on a copy."""
        plans = self._core.phases.plans(slot.bucket)
        return {plan: self._collectives(slot.bucket, plan, kinds) for plan, kinds in plans.items()}

    def plan(self, slot: Slot) -> str:
        """Return which of its plans a slot follows in the step that begins."""
        with self._lock:
            self._take_over(slot)
            # the slot's own last step is settled at the launch of this
            slot.parameters.bucket.step = slot.parameters.step + (slot.step is not None)
            return self._core.phases.plan(slot.parameters.bucket)

    def plain_steps(self, nbytes: int) -> int:
        """Return for how many steps, from the one that begins on, Horovod reduces all gradients itself: ``nbytes`` in
        each. When these are over, it is asked again."""
        with self._lock:
            self._count_plain(0)
            if self._gather is not None:
                return 0  # before the first step the workers agree
            for slot in self._slots:
                if slot.step is not None:
                    self._settle(slot.step)
            self._done_before(self._step)
            steps = self._core.phases.plain_steps(self._step)
            self._plain = min(steps, max(1, steps // REPORTS)), nbytes
            return self._plain[0]

    def launch(self, call: TracedCall | None, slot: Slot, plan: str, pieces: Sequence[Float32], finite: bool) -> Array:
        """Start a slot's exchange with its gradients (float32, flat); return what the first collective takes."""
        with self._failing(slot):
            if call is not None:
                with self._lock:
                    self._core.check()
                    self._agree()
                    self._enter(call, slot)
            with self._timed(slot):
                run = self._core.begin(slot.parameters, pieces, finite, plan)
                slot.flushed = False
                run.launch(self._transport)
            pending: PendingCollective = run.handle
            return pending.array

    def root(self, slot: Slot) -> int:
        """Return the root of the broadcast that a slot's exchange has just yielded."""
        collective = running(slot).handle.collective
        return collective.root if isinstance(collective, Broadcast) else 0

    def advance(self, slot: Slot, result: Array, following: CollectiveSpec) -> Array:
        """Take the result of a collective; return what the next one takes."""
        with self._failing(slot):
            with self._timed(slot):
                run = self._deliver(slot, result)
            if run.landed:  # not finite, and all workers know: the collectives that are laid out run empty
                return np.zeros(1, following.dtype)
            pending: PendingCollective = run.handle
            op = getattr(pending.collective, "op", "")
            if (pending.array.dtype, op) != (following.dtype, following.op):
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange yielded {pending.array.dtype} {op} where it yielded "
                    f"{following.dtype} {following.op} before; under TensorFlow both must be the same in every step"
                )
            return pending.array

    def land(self, slot: Slot, result: Array, scale: float) -> tuple[Float32, bool]:
        """Take the last result. Return the mean times ``scale``, to be used until nobody refers to it any more, and
        whether the workers want to flush: then they all go on with ``rest``."""
        with self._failing(slot):
            run = running(slot)
            if not run.landed:
                self._deliver(slot, result)
            started = perf_counter()
            mean = self._buffer(slot)
            if run.flags & header.NONFINITE:
                run.abandon(mean)
            else:
                run.decode(mean)
                if run.mean is not mean:
                    mean[:] = run.mean
                    run.mean = mean
                if scale != 1:
                    mean *= np.float32(scale)
            if slot.step is None:
                run.commit()
                slot.parameters.run = None
                slot.parameters.step += 1  # random numbers differ from call to call
                return mean, False
            with self._lock:
                self._core.count(slot.parameters)
                self._core.total.skipped_steps += bool(run.flags & ~slot.step.flags & header.NONFINITE)
                self._core.total.decompress += perf_counter() - started
                slot.step.flags |= run.flags
            return mean, run.flags == header.FLUSH and slot.bucket.memory.held_back() is not None

    def can_flush(self, slot: Slot) -> bool:
        """Return whether ``land`` may ask for a flush of this slot."""
        return self._compressor.can_flush and bool(slot.bucket.memory.arrays())

    def rest(self, slot: Slot) -> Float32:
        """Return what the step leaves in the memory, to be summed over the workers; a copy."""
        slot.flushed = True
        with self._lock:
            self._core.total.sent_bytes += 4 * slot.parameters.bucket.size
        return slot.parameters.bucket.memory.values().copy()

    def flushed(self, slot: Slot, total: Float32, scale: float) -> Float32:
        """Return the mean with what was left over, from the sum of the workers' ``rest``."""
        mean = self._buffer(slot)
        np.multiply(total, np.float32(scale / self.workers), out=mean)
        mean += running(slot).mean
        return mean

    def settle(self) -> None:
        """Decide what becomes of the memories of all steps that are complete."""
        with self._lock:
            self._count_plain(self.plain_left())
            for slot in self._slots:
                if slot.step is not None and slot.step.complete:
                    self._settle(slot.step)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat.

        Raises:
            RuntimeError: a step is under way.
        """
        self.settle()
        for slot in self._slots:
            if slot.step is not None:
                name = slot.members[0].name
                raise RuntimeError(f"a step is under way: the gradient of {name!r} has not come back yet")
        return self._core.state_dict(layout=True)

    def _collectives(self, bucket: Bucket, plan: str, kinds: Collectives) -> list[CollectiveSpec]:
        """Return the collectives of one plan."""
        declared = self._core.phases.reduce_dtypes
        if kinds == (AllGather,) or plan in declared or (declared and AllReduce not in kinds):
            return [self._declared(plan, kind) for kind in kinds]
        trial = self._core.trial(bucket)
        trial.plan = plan
        return try_out(self._compressor, trial, kinds)

    def _declared(self, plan: str, kind: type[AllGather] | type[AllReduce] | type[Broadcast]) -> CollectiveSpec:
        if kind is AllReduce:
            return CollectiveSpec(kind, np.dtype(self._core.phases.reduce_dtypes[plan]), "sum")
        return CollectiveSpec(kind, np.dtype(np.uint8), "")

    def _count_plain(self, left: int) -> None:
        """Count the steps in which Horovod reduced all gradients itself, but for those that are still to come."""
        steps, nbytes = self._plain[0] - left, self._plain[1]
        self._plain = left, nbytes
        if steps:
            for slot in self._slots:
                slot.parameters.step += steps
            total, runtime = self._core.total, self._compressor.runtime
            total.steps += steps
            total.sent_bytes += steps * nbytes
            total.dense_bytes += steps * nbytes
            runtime.flush_requested = runtime.discard_requested = False  # there is nothing to send or to keep

    def _done_before(self, step: int) -> None:
        """Let the compressor know that all steps before this one are over."""
        if step > self._begun:
            self._core.phases.step_done(step - 1, step - self._begun)
            self._begun = step

    @property
    def _step(self) -> int:
        return max((slot.parameters.step for slot in self._slots), default=0)

    def _agree(self) -> None:
        """Before the first step, make sure that all workers are about to do the same."""
        if self._gather is not None:
            gathered = self._gather(self.proposal())
            self._gather = None
            check_proposals(gathered)
            self._core.phases.on_agreement(self._step)

    def _enter(self, call: TracedCall, slot: Slot) -> None:
        """Begin a step of ``call``, or join it; what this slot did before is over."""
        if slot.step is not None:
            self._settle(slot.step)
        self._take_over(slot)
        if call.step is None or call.step.settled:
            call.step = GraphStep(call.buckets)
            self._done_before(slot.parameters.step)
            total = self._core.total
            total.steps += 1
            total.sent_bytes += call.uncompressed
            total.dense_bytes += call.uncompressed
        call.step.slots.append(slot)
        slot.step = call.step

    def _take_over(self, slot: Slot) -> None:
        """Let the memories of a slot's parameters move in from where the last step left them."""
        if slot.rivals:
            self._settle_all(slot.rivals)
            self._core.claim(slot.parameters)

    def _settle_all(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if slot.step is not None:
                self._settle(slot.step)

    def _settle(self, step: GraphStep) -> None:
        """Decide what becomes of a step. One that did not come to its end, since something else in the graph ended it
        with an error, leaves no trace."""
        flags = step.flags
        if not step.complete:
            _log.warning("a step ended before it had got back all gradients; it leaves no trace")
            flags |= header.NONFINITE
            self._core.total.skipped_steps += 1
        ran = [slot.parameters for slot in step.slots if slot.parameters.run is not None]
        flushed = [slot.parameters for slot in step.slots if slot.flushed]
        applied = []
        if self._compressor.nonfinite == "zero" and step.complete:
            # only the means of buckets that are not finite are zeros; the others' are not NaN, and so are used
            applied = [bucket for bucket in ran if bucket.run is not None and not bucket.run.flags & header.NONFINITE]
        rest = [bucket for bucket in ran if bucket not in applied]
        requested = self._compressor.runtime.flush_requested
        if applied:
            self._core.settle(applied, flags & ~header.NONFINITE, flushed)
        if rest:
            self._compressor.runtime.flush_requested = requested
            self._core.settle(rest, flags, flushed)
        for slot in step.slots:
            slot.step = None
        step.settled = True

    def _deliver(self, slot: Slot, result: Array) -> ExchangeRun:
        run = running(slot)
        if not run.landed:
            run.handle.result = result
            run.advance(self._transport)
        return run

    def _buffer(self, slot: Slot) -> Float32:
        """Return a buffer for a mean that neither TensorFlow nor the caller has a use for any more. TensorFlow takes
        NumPy's memory over without a copy and keeps the array alive; the count of references says when it is done."""
        for index in range(len(slot.means)):
            if sys.getrefcount(slot.means[index]) == 2:
                return slot.means[index]
        mean = self._kernels.empty(slot.parameters.bucket.size)
        if len(slot.means) < SPARE_MEANS:
            slot.means.append(mean)
        return mean

    @contextmanager
    def _timed(self, slot: Slot) -> Iterator[None]:
        """Count the seconds inside as compression, for exchanges of a step."""
        started = perf_counter()
        yield
        if slot.step is not None:
            with self._lock:
                self._core.total.compress += perf_counter() - started

    @contextmanager
    def _failing(self, slot: Slot) -> Iterator[None]:
        """See to it that an error inside leaves no trace of the step, and is what the next step names as its cause."""
        try:
            yield
        except BaseException as error:
            with self._lock:
                step, slot.step = slot.step, None
                if step is None:  # alone: there is no next step
                    slot.parameters.run = None
                else:
                    self._core.fail(error, [other.parameters for other in step.slots])
                    for other in step.slots:
                        other.step = None
                    step.settled = True
            raise
