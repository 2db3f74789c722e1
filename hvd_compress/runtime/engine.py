"""One worker's side of a training step: buckets, exchanges under way, and what all workers decide together.

A driver owns an engine and a transport. It calls ``add`` for every gradient and ``finish`` (or iterates ``finishing``)
when all are in; ``means`` then has the results. The steps of a step:

1. ``add`` collects gradients; a complete bucket's exchange starts at once, so that it overlaps with the backward pass.
   In the first step every parameter is a bucket of its own. With a ``worker`` thread the backward pass does not wait
   for the algorithm either; what is exchanged is the same.
2. ``finishing`` waits for the last collective of every exchange, and only then decides: if any worker flagged a
   gradient that is not finite, all memories stay as they were and all means are NaN; else all exchanges decode.
3. If any worker asked for a flush, what the memories hold is all-reduced too.
4. After the first step rank 0's order of arrival is broadcast, and parameters are fused to buckets in that order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter
from typing import Any

import numpy as np

from hvd_compress import kernels
from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather, AllReduce, Broadcast, Bucket
from hvd_compress.kernels import Float32
from hvd_compress.phased import MPIJob, Phases, Preparation, phases
from hvd_compress.runtime.agreement import STATE_VERSION, Parameter, check_proposals, foreign, proposal
from hvd_compress.runtime.exchange_run import ExchangeRun, Handle, Transport


@dataclass(eq=False)
class Group:
    """A bucket, the parameters in it, and the gradients that have arrived in this step."""

    bucket: Bucket
    members: list[int]
    pieces: list[Float32 | None]
    missing: int
    flight: ExchangeRun | None = None


class Engine:
    """See the module's docstring. ``label`` begins the names of all collectives and is the same on every worker;
    ``expected`` is the number of gradients, compressed or not, that come by in a step. ``names`` are those of all
    weights in the model's order, if some of them are not compressed. ``worker``, of one thread, takes compression off
    the thread that calls ``add``."""

    def __init__(
        self,
        compressor: Compressor,
        transport: Transport,
        parameters: Sequence[Parameter],
        label: str,
        expected: int,
        names: Sequence[str] = (),
        worker: Executor | None = None,
    ) -> None:
        self.means: dict[int, Float32] = {}
        self.buffers: list[Float32] = []  # what the means are views of
        self.step = 0
        self._compressor = compressor
        self._phases = phases(compressor)
        self._transport = transport
        self._parameters = parameters
        self._label = label
        self._expected = expected
        self._worker = worker
        self._kernels = kernels.get()
        self._statistics = compressor.runtime.statistics
        self._groups: list[Group] = []
        self._place: dict[int, tuple[Group, int]] = {}
        self._order: list[int] = []
        self._fused = False
        self._arrived = 0
        self._complete: list[Group] = []
        self._flights: list[ExchangeRun] = []
        self._overflow = False
        self._kinds: list[str] = [""] * len(parameters)
        self._error = self._prepare(names) or self._restore(compressor.runtime.pending_state)
        compressor.runtime.pending_state = None
        self._agreement: Handle | None = self._propose()

    @property
    def busy(self) -> bool:
        """Whether a step is under way."""
        return self._arrived > 0

    def add(self, index: int, gradient: Float32) -> None:
        """Hand over the gradient (float32, flat; read later, not copied) of parameter ``index``."""
        if index not in self._place:
            self._new_group(self._parameters[index].name, [index])
        group, position = self._place[index]
        if group.flight is not None or group.pieces[position] is not None:
            raise RuntimeError(f"the gradient of {self._parameters[index].name!r} came twice in one step")
        group.pieces[position] = gradient
        group.missing -= 1
        self._order.append(index)
        if group.missing == 0:
            self._complete.append(group)
        self._advance()

    def add_uncompressed(self, nbytes: int, finite: bool) -> None:
        """Note a gradient that the framework reduces itself: its size, and whether it is finite on this worker."""
        self._overflow = self._overflow or not finite
        self._statistics.total.sent_bytes += nbytes
        self._statistics.total.dense_bytes += nbytes
        self._advance()

    def finish(self) -> None:
        """Complete the step, blocking."""
        for handle in self.finishing():
            started = perf_counter()
            self._transport.wait(handle)
            self._statistics.total.wait += perf_counter() - started

    def agreeing(self) -> Iterator[Handle]:
        """Check that all workers have the same configuration, parameters and state. Yields what must be waited for.

        Raises:
            ValueError: they differ, or one could not restore its state; the same message on every worker.
        """
        if self._agreement is None:
            return
        yield self._agreement
        proposals = self._transport.result(self._agreement)
        self._agreement = None
        check_proposals(proposals)
        self._phases.on_agreement(self.step)

    def finishing(self) -> Iterator[Handle]:
        """Complete the step; yields every handle that must be done before the iteration goes on."""
        yield from self.agreeing()
        self._complete.clear()
        for group in self._groups:
            if group.flight is None:
                self._launch(group)
        while waiting := [flight for flight in self._flights if not flight.landed]:
            for flight in waiting:
                self._settle(flight)
                if not flight.landed:
                    yield flight.handle
                    self._go_on(flight)
                    self._settle(flight)
        total = self._statistics.total
        started = perf_counter()
        waited = total.wait
        flags = 0
        for flight in self._flights:
            flags |= flight.flags
        if flags & header.NONFINITE:
            self._abandon()
        else:
            for flight in self._flights:
                flight.decode()
            if flags & header.FLUSH:
                yield from self._flush()
            if not self._compressor.error_feedback:
                self._compressor.runtime.flush_requested = False
        self._collect()
        total.decompress += perf_counter() - started - (total.wait - waited)
        if not self._fused:
            yield from self._fuse()
        self._order.clear()
        self._flights.clear()
        self._arrived = 0
        self._overflow = False
        self.step += 1
        total.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """This worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat."""
        if self.busy:
            raise RuntimeError("state_dict must be called between steps, not between backward and synchronize")
        memory: dict[str, dict[str, Float32]] = {}
        for group in self._groups:
            for name, part in self._parts(group):
                memory[name] = {key: array[part].copy() for key, array in group.bucket.memory.arrays().items()}
        return {
            "version": STATE_VERSION,
            "compressor": self._compressor.name,
            "rank": self._transport.rank,
            "workers": self._transport.workers,
            "step": self.step,
            "layout": [[name for name, _ in self._parts(group)] for group in self._groups] if self._fused else [],
            "memory": memory,
            "algorithm": {group.bucket.name: copy.deepcopy(group.bucket.state) for group in self._groups},
            **shared(self._phases),
        }

    def _advance(self) -> None:
        """Start what is complete, and the later rounds of what is under way.

        The last bucket waits until every gradient has come by: its payload is where the others learn that one outside
        the buckets was not finite. In the first step nobody knows which is the last, so each waits for the next.
        """
        self._arrived += 1
        while self._complete:
            last = len(self._flights) + 1 == len(self._groups) if self._fused else len(self._complete) == 1
            if last and self._arrived < self._expected:
                break
            self._launch(self._complete.pop(0))
        for flight in self._flights:
            if len(flight.schedule) > 1:
                while self._settle(flight, block=False) and not flight.landed and self._transport.done(flight.handle):
                    self._go_on(flight)

    def _go_on(self, flight: ExchangeRun) -> None:
        self._work(flight, lambda: flight.advance(self._transport))

    def _work(self, flight: ExchangeRun, work: Callable[[], object]) -> None:
        """Do a part of an exchange's algorithm: here, or on the worker."""

        def timed() -> float:
            started = perf_counter()
            work()
            return perf_counter() - started

        if self._worker is None:
            self._statistics.total.compress += timed()
        else:
            flight.task = self._worker.submit(timed)

    def _settle(self, flight: ExchangeRun, block: bool = True) -> bool:
        """Whether the worker is done with its part, after waiting for it with ``block``; raises what it raised."""
        if flight.task is not None:
            if not (block or flight.task.done()):
                return False
            started = perf_counter()
            self._statistics.total.compress += flight.task.result()
            self._statistics.total.wait += perf_counter() - started
            flight.task = None
        return True

    def _launch(self, group: Group) -> None:
        bucket = group.bucket
        pieces = [
            np.zeros(self._parameters[index].size, np.float32) if piece is None else piece
            for index, piece in zip(group.members, group.pieces, strict=True)
        ]
        group.pieces = [None] * len(pieces)
        group.missing = len(pieces)
        bucket.step = self.step
        bucket.overflow = self._overflow
        bucket.target = bucket.sent = 0
        bucket.memory.begin(pieces)
        flight = group.flight = ExchangeRun(self._compressor, bucket, self._label)
        self._flights.append(flight)
        self._work(flight, lambda: flight.launch(self._transport))

    def _abandon(self) -> None:
        for flight in self._flights:
            flight.abandon()
            flight.bucket.target = flight.bucket.sent = 0
        self._statistics.total.skipped_steps += 1

    def _flush(self) -> Iterator[Handle]:
        """All-reduce what the memories still hold, add it to the means, and clear the memories."""
        handles: list[tuple[ExchangeRun, Handle]] = []
        for flight in self._flights:
            rest = flight.bucket.memory.held_back()
            if rest is not None:
                name = f"{self._label}.{flight.bucket.name}.flush"
                handles.append((flight, self._transport.start(AllReduce(rest), name)))
                self._statistics.total.sent_bytes += rest.nbytes
        for flight, handle in handles:
            yield handle
            total = self._transport.result(handle)
            flight.mean += total * np.float32(1 / self._transport.workers)
            flight.bucket.memory.clear()
            flight.bucket.state.clear()  # what a rank adapted to its own gradients; now the ranks' states are alike
        self._compressor.runtime.flush_requested = False

    def _collect(self) -> None:
        total = self._statistics.total
        self.means.clear()
        self.buffers.clear()
        for group in self._groups:
            assert group.flight is not None
            self.buffers.append(group.flight.mean)
            offset = 0
            for index in group.members:
                size = self._parameters[index].size
                self.means[index] = group.flight.mean[offset : offset + size]
                offset += size
            total.sent_bytes += group.flight.sent_bytes + group.bucket.extra_sent_bytes
            total.dense_bytes += 4 * group.bucket.size
            total.target += group.bucket.target
            total.selected += group.bucket.sent
            group.flight = None

    def _fuse(self) -> Iterator[Handle]:
        order = np.full(len(self._parameters), -1, np.int32)
        order[: len(self._order)] = self._order
        handle = self._transport.start(Broadcast(order), f"{self._label}.order")
        yield handle
        leader = [int(index) for index in self._transport.result(handle) if index >= 0]
        if sorted(leader) != sorted(self._order):
            odd = sorted(self._parameters[i].name for i in set(leader) ^ set(self._order))
            raise RuntimeError(f"rank 0 and rank {self._transport.rank} compress different parameters: {odd}")
        self._fused = True
        self._regroup(plan(leader, self._parameters, self._compressor.bucket_mb, self._kinds))

    def _regroup(self, layout: list[list[int]]) -> None:
        """Lay parameters out in these buckets; what their memories hold moves along, and the state of a bucket that
        stays what it was."""
        states = {tuple(group.members): group.bucket.state for group in self._groups}
        before = {
            name: {key: array[part] for key, array in group.bucket.memory.arrays().items()}
            for group in self._groups
            for name, part in self._parts(group)
        }
        self._groups = []
        self._place = {}
        for number, members in enumerate(layout):
            group = self._new_group(f"bucket{number}", members)
            group.bucket.state.update(states.get(tuple(members), {}))
            for name, part in self._parts(group):
                for key, array in before.get(name, {}).items():
                    group.bucket.memory.arrays()[key][part] = array

    def _new_group(self, name: str, members: list[int]) -> Group:
        size = sum(self._parameters[member].size for member in members)
        bucket = Bucket(
            name=name,
            size=size,
            memory=self._compressor.new_memory(self._kernels, size),
            kernels=self._kernels,
            rank=self._transport.rank,
            workers=self._transport.workers,
            seed=self._compressor.seed,
            kind=self._kinds[members[0]],
            members=tuple(self._parameters[member].name for member in members),
        )
        group = Group(bucket, members, [None] * len(members), len(members))
        self._groups.append(group)
        for position, member in enumerate(members):
            self._place[member] = (group, position)
        return group

    def _parts(self, group: Group) -> Iterator[tuple[str, slice]]:
        """Name and place in the bucket of every parameter of a group."""
        offset = 0
        for member in group.members:
            name, size = self._parameters[member]
            yield name, slice(offset, offset + size)
            offset += size

    def _prepare(self, names: Sequence[str]) -> str:
        """Let the compressor say what kinds of parameters there are; returns what is wrong, or nothing."""
        sizes = {parameter.name: parameter.size for parameter in self._parameters}
        work = Preparation(
            {name: sizes.get(name, 0) for name in names or sizes},
            self._transport.rank,
            self._transport.workers,
            self._transport.simulated,
            MPIJob(self._transport.mpi, self._label) if self._transport.mpi else None,
        )
        try:
            kinds = self._phases.prepare(work)
        except (OSError, ValueError) as error:
            return str(error)
        self._kinds = [kinds.get(parameter.name, "") for parameter in self._parameters]
        return ""

    def _restore(self, state: dict[str, Any] | None) -> str:
        """Take a saved state over; returns what is wrong with it, or nothing."""
        if not state:
            return ""
        known = {parameter.name: index for index, parameter in enumerate(self._parameters)}
        if unknown := sorted(set(state["memory"]) - set(known)):
            return f"the saved state has parameters this model does not compress: {', '.join(unknown)}"
        if error := foreign(state, self._transport.rank, self._transport.workers):
            return error
        self.step = int(state["step"])
        try:
            self._phases.load_shared_state(copy.deepcopy(state.get("shared", {})))
        except ValueError as error:
            return str(error)
        for names in state["layout"]:
            if len({self._kinds[known[name]] for name in names}) > 1:
                return f"the saved state has parameters in one bucket that are now treated differently: {names}"
        if state["layout"]:
            self._fused = True
            self._regroup([[known[name] for name in names] for names in state["layout"]])
        for group in self._groups:
            group.bucket.state.update(copy.deepcopy(state["algorithm"].get(group.bucket.name, {})))
            for name, part in self._parts(group):
                for key, array in state["memory"][name].items():
                    values = np.asarray(array, dtype=np.float32)
                    if values.shape != (part.stop - part.start,):
                        return f"the saved {key} of {name!r} has shape {values.shape}, not ({part.stop - part.start},)"
                    group.bucket.memory.arrays()[key][part] = values
        return ""

    def _propose(self) -> Handle:
        """Tell the others what this worker is about to do; ``agreeing`` compares."""
        layout = [group.members for group in self._groups]
        payload = proposal(self._compressor, self._parameters, self.step, layout, self._error)
        return self._transport.start(AllGather(payload), f"{self._label}.agreement")


def shared(answers: Phases) -> dict[str, Any]:
    """Return the part of a state that belongs to no bucket, if there is one."""
    state = answers.shared_state()
    return {"shared": state} if state else {}


def plan(
    order: Sequence[int], parameters: Sequence[Parameter], bucket_mb: float, kinds: Sequence[str] = ()
) -> list[list[int]]:
    """Cut ``order`` (parameter indices) into buckets of at most ``bucket_mb`` MiB of float32, each of parameters of one
    of the ``kinds`` (by parameter index) that come one after the other.

    A parameter larger than that is a bucket of its own. The bucket that is complete last cannot be compressed during
    the backward pass: if it is more than half full, what comes last is a bucket of its own, up to an eighth.
    """
    room = bucket_mb * 2**20 / 4
    layout: list[list[int]] = []
    last: dict[str, tuple[list[int], int]] = {}
    bucket: list[int] = []
    filled = 0
    for index in order:
        size, kind = parameters[index].size, kinds[index] if kinds else ""
        bucket, filled = last.get(kind, ([], 0))
        if not bucket or filled + size > room:
            bucket, filled = [], 0
            layout.append(bucket)
        bucket.append(index)
        filled += size
        last[kind] = bucket, filled
    if filled > room / 2:
        sums = accumulate(parameters[index].size for index in reversed(bucket))
        count = sum(total <= room / 8 for total in sums)
        if count:
            layout.append(bucket[-count:])
            del bucket[-count:]
    return layout
