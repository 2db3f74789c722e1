"""One worker's side of a step that a graph runs: exchanges advance when the graph calls, memories commit late.

A graph is laid out once and then runs on its own: nothing in it can wait until all gradients of the step have come
back. So every bucket decodes as soon as its own last collective is done, and what becomes of the memories is decided
when nothing is under way any more: at the first call of the next step, or when the state is asked for. If any gradient
of the step was flagged as not finite, on any worker, all memories stay as they were.

The calls of a step: ``launch``, ``advance`` between rounds, ``land``; and ``rest`` and ``flushed`` if ``land`` says so.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from hvd_compress import kernels
from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather, AllReduce, Array, Broadcast, Bucket
from hvd_compress.kernels import Float32, UInt8
from hvd_compress.memory import Memory
from hvd_compress.phased import MPIJob, Preparation, phases
from hvd_compress.runtime.agreement import STATE_VERSION, Parameter, check_proposals, proposal
from hvd_compress.runtime.engine import shared
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.runtime.graph_step import GraphStep, Slot, TracedCall
from hvd_compress.runtime.graph_transport import CollectiveSpec, GraphTransport, PendingCollective, try_out
from hvd_compress.runtime.restoring import Saved

SPARE_MEANS = 3
"""Buffers for means that a bucket keeps: TensorFlow may hold the last step's while the next is decoded."""


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
        self._phases = phases(compressor)
        self._gather: Callable[[UInt8], UInt8] | None = gather
        self._relay = GraphTransport(rank, workers, mpi)
        self._kernels = kernels.get()
        self._statistics = compressor.runtime.statistics
        self._lock = threading.RLock()
        self._slots: list[Slot] = []
        self._kinds: dict[str, str] = {}
        self._error = ""
        self._shared = (compressor.runtime.pending_state or {}).get("shared", {})
        self._saved = Saved(compressor.runtime.pending_state, rank, workers)
        compressor.runtime.pending_state = None

    def prepare(self, weights: Mapping[str, int]) -> dict[str, str]:
        """The kinds of a call's parameters; ``weights`` as in ``Preparation``. What is wrong is said before the first
        step, on all ranks."""
        try:
            work = Preparation(
                weights,
                self.rank,
                self.workers,
                self._relay.simulated,
                MPIJob(self._relay.mpi, self.label) if self._relay.mpi else None,
            )
            self._kinds.update(self._phases.prepare(work))
            state, self._shared = self._shared, {}
            if state:
                self._phases.load_shared_state(copy.deepcopy(state))
        except (OSError, ValueError) as error:
            if self._gather is None:  # a later call, about which the ranks have nothing to agree any more
                raise
            self._error = self._error or str(error)
        return self._kinds

    def slot(self, members: Sequence[Parameter]) -> Slot:
        """The bucket of these parameters: the same one whenever the same call is traced again.

        Raises:
            ValueError: some of them are in another bucket.
        """
        wanted = tuple(members)
        taken = {parameter.name: slot for slot in self._slots for parameter in slot.members}
        for parameter in wanted:
            if parameter.name in taken and taken[parameter.name].members != wanted:
                raise ValueError(
                    f"{parameter.name!r} is reduced together with other variables than before, and its memory lies "
                    f"with theirs; call {type(self._compressor).__name__} with the same variables and groups every "
                    "time, or make one compressor for each way of calling it"
                )
        if wanted and wanted[0].name in taken:
            return taken[wanted[0].name]
        index = len(self._slots)
        bucket = self._bucket(f"bucket{index}", sum(parameter.size for parameter in wanted), alone=False)
        bucket.kind = self._kinds.get(wanted[0].name, "")
        bucket.members = tuple(parameter.name for parameter in wanted)
        slot = Slot(bucket, wanted)
        self._saved.restore(slot, index)
        self._slots.append(slot)
        return slot

    def alone(self, size: int, name: str) -> Slot:
        """A bucket outside any optimizer: no memory, no step."""
        return Slot(self._bucket(name, size, alone=True), (Parameter(name, size),))

    def rounds(self, slot: Slot) -> dict[str, list[CollectiveSpec]]:
        """The collectives of every plan of a slot's exchange. If there is but one, they are found by a trial on a copy:
        algorithms declare types, not dtypes."""
        plans = self._phases.plans(slot.bucket)
        if len(plans) > 1 or (AllGather,) in plans.values():
            return {plan: [self._declared(plan, kind) for kind in kinds] for plan, kinds in plans.items()}
        (only,) = plans
        size = slot.bucket.size
        trial = self._bucket(slot.bucket.name, size, alone=True)
        trial.memory = self._compressor.new_memory(self._kernels, size)
        trial.kind, trial.members, trial.plan = slot.bucket.kind, slot.bucket.members, only
        return {only: try_out(self._compressor, trial, plans[only])}

    def plan(self, slot: Slot) -> str:
        """Which of its plans a slot follows in the step that begins."""
        with self._lock:
            slot.bucket.step = slot.step + (slot.turn is not None)  # the last step is settled at the launch of this
            return self._phases.plan(slot.bucket)

    def launch(self, call: TracedCall | None, slot: Slot, plan: str, pieces: Sequence[Float32], finite: bool) -> Array:
        """Start a slot's exchange with its gradients (float32, flat); returns what the first collective takes."""
        if call is not None:
            with self._lock:
                self._agree()
                self._enter(call, slot)
        started = perf_counter()
        bucket = slot.bucket
        bucket.step = slot.step
        bucket.overflow = not finite
        bucket.target = bucket.sent = 0
        slot.flushed = False
        bucket.memory.begin(list(pieces))
        slot.flight = ExchangeRun(self._compressor, bucket, self.label, plan)
        slot.flight.launch(self._relay)
        if call is not None:
            with self._lock:
                self._statistics.total.compress += perf_counter() - started
        pending: PendingCollective = slot.flight.handle
        return pending.array

    def root(self, slot: Slot) -> int:
        """The root of the broadcast that a slot's exchange has just yielded."""
        assert slot.flight is not None
        collective = slot.flight.handle.collective
        return collective.root if isinstance(collective, Broadcast) else 0

    def advance(self, slot: Slot, result: Array, following: CollectiveSpec) -> Array:
        """Take the result of a collective; returns what the next one takes."""
        started = perf_counter()
        flight = self._deliver(slot, result)
        if slot.turn is not None:
            with self._lock:
                self._statistics.total.compress += perf_counter() - started
        if flight.landed:  # not finite, and all workers know: the collectives that are laid out run empty
            return np.zeros(1, following.dtype)
        pending: PendingCollective = flight.handle
        op = getattr(pending.collective, "op", "")
        if (pending.array.dtype, op) != (following.dtype, following.op):
            raise TypeError(
                f"{type(self._compressor).__name__}.exchange yielded {pending.array.dtype} {op} where it yielded "
                f"{following.dtype} {following.op} before; under TensorFlow both must be the same in every step"
            )
        return pending.array

    def land(self, slot: Slot, result: Array, scale: float) -> tuple[Float32, bool]:
        """Take the last result. Returns the mean times ``scale``, to be used until nobody refers to it any more, and
        whether the workers want to flush: then they all go on with ``rest``."""
        flight = slot.flight
        assert flight is not None
        if not flight.landed:
            self._deliver(slot, result)
        started = perf_counter()
        mean = self._buffer(slot)
        slot.before = copy.deepcopy(slot.bucket.state)
        if flight.flags & header.NONFINITE:
            mean[:] = np.nan
            flight.mean = mean
        else:
            flight.decode(mean)
            if flight.mean is not mean:
                mean[:] = flight.mean
                flight.mean = mean
            if scale != 1:
                mean *= np.float32(scale)
        if slot.turn is None:
            slot.bucket.memory.commit()
            slot.flight = None
            slot.step += 1  # random numbers differ from call to call
            return mean, False
        with self._lock:
            total = self._statistics.total
            total.skipped_steps += bool(flight.flags & ~slot.turn.flags & header.NONFINITE)
            total.sent_bytes += flight.sent_bytes + slot.bucket.extra_sent_bytes
            total.dense_bytes += 4 * slot.bucket.size
            total.decompress += perf_counter() - started
            slot.turn.flags |= flight.flags
        return mean, flight.flags & (header.FLUSH | header.NONFINITE) == header.FLUSH

    def can_flush(self, slot: Slot) -> bool:
        """Whether ``land`` may ask for a flush of this slot."""
        return self._compressor.can_flush and slot.bucket.memory.held_back() is not None

    def rest(self, slot: Slot) -> Float32:
        """What the step leaves in the memory, to be summed over the workers; a copy."""
        memory = slot.bucket.memory
        slot.flushed = True
        with self._lock:
            self._statistics.total.sent_bytes += 4 * slot.bucket.size
        return memory.values().copy()

    def flushed(self, slot: Slot, total: Float32, scale: float) -> Float32:
        """The mean with what was left over, from the sum of the workers' ``rest``."""
        assert slot.flight is not None
        mean = self._buffer(slot)
        np.multiply(total, np.float32(scale / self.workers), out=mean)
        mean += slot.flight.mean
        return mean

    def settle(self) -> None:
        """Decide what becomes of the memories of all steps that are complete.

        Raises:
            RuntimeError: one is not.
        """
        with self._lock:
            for slot in self._slots:
                if slot.turn is not None:
                    self._settle(slot.turn)

    def state_dict(self) -> dict[str, Any]:
        """This worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat."""
        self.settle()
        memory: dict[str, dict[str, Float32]] = {}
        for slot in self._slots:
            arrays = slot.bucket.memory.arrays()
            offset = 0
            for name, size in slot.members:
                memory[name] = {key: array[offset : offset + size].copy() for key, array in arrays.items()}
                offset += size
        return {
            "version": STATE_VERSION,
            "compressor": self._compressor.name,
            "rank": self.rank,
            "workers": self.workers,
            "step": max((slot.step for slot in self._slots), default=0),
            "steps": [slot.step for slot in self._slots],
            "layout": [[name for name, _ in slot.members] for slot in self._slots],
            "memory": {**self._saved.remaining(), **memory},
            "algorithm": {slot.bucket.name: copy.deepcopy(slot.bucket.state) for slot in self._slots},
            **shared(self._phases),
        }

    def _declared(self, plan: str, kind: type[AllGather] | type[AllReduce] | type[Broadcast]) -> CollectiveSpec:
        if kind is AllReduce:
            return CollectiveSpec(kind, np.dtype(self._phases.reduce_dtypes[plan]), "sum")
        return CollectiveSpec(kind, np.dtype(np.uint8), "")

    def _agree(self) -> None:
        """Before the first step, make sure that all workers are about to do the same."""
        if self._gather is None:
            return
        gather, self._gather = self._gather, None
        parameters = [parameter for slot in self._slots for parameter in slot.members]
        layout = [[parameter.name for parameter in slot.members] for slot in self._slots]
        step = max((slot.step for slot in self._slots), default=0)
        error = self._error or self._saved.problem(parameters)
        check_proposals(gather(proposal(self._compressor, parameters, step, layout, error)))
        self._phases.on_agreement(step)

    def _enter(self, call: TracedCall, slot: Slot) -> None:
        """Begin a step of ``call``, or join it; what this slot did before is over."""
        if slot.turn is not None:
            self._settle(slot.turn)
        if call.turn is None or call.turn.settled:
            call.turn = GraphStep()
            total = self._statistics.total
            total.steps += 1
            total.sent_bytes += call.uncompressed
            total.dense_bytes += call.uncompressed
        call.turn.slots.append(slot)
        slot.turn = call.turn

    def _settle(self, turn: GraphStep) -> None:
        total = self._statistics.total
        abandoned = bool(turn.flags & header.NONFINITE)
        for slot in turn.slots:
            flight, bucket = slot.flight, slot.bucket
            if flight is None or not flight.landed:
                name = slot.members[0].name
                raise RuntimeError(f"a step began before the last one had got back the gradient of {name!r}")
            if abandoned:
                bucket.memory.rollback()
                bucket.state.clear()
                bucket.state.update(slot.before)
            else:
                bucket.memory.commit()
                total.target += bucket.target
                total.selected += bucket.sent
                if slot.flushed:
                    bucket.memory.clear()
                    bucket.state.clear()  # what a rank adapted to its own gradients; now the ranks' states are alike
            slot.step += 1
            slot.turn = slot.flight = None
        if not self._compressor.error_feedback or (not abandoned and all(slot.flushed for slot in turn.slots)):
            self._compressor.runtime.flush_requested = False
        turn.settled = True

    def _deliver(self, slot: Slot, result: Array) -> ExchangeRun:
        assert slot.flight is not None
        if not slot.flight.landed:
            slot.flight.handle.result = result
            slot.flight.advance(self._relay)
        return slot.flight

    def _buffer(self, slot: Slot) -> Float32:
        """A buffer for a mean that neither TensorFlow nor the caller has a use for any more. TensorFlow takes NumPy's
        memory over without a copy and keeps the array alive; the count of references says when it is done."""
        for index in range(len(slot.means)):
            if sys.getrefcount(slot.means[index]) == 2:
                return slot.means[index]
        mean = self._kernels.empty(slot.bucket.size)
        if len(slot.means) < SPARE_MEANS:
            slot.means.append(mean)
        return mean

    def _bucket(self, name: str, size: int, *, alone: bool) -> Bucket:
        return Bucket(
            name=name,
            size=size,
            memory=Memory(self._kernels, size) if alone else self._compressor.new_memory(self._kernels, size),
            kernels=self._kernels,
            rank=self.rank,
            workers=self.workers,
            seed=self._compressor.seed,
        )
