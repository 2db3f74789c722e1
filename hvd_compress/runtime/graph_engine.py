"""The scheduler that a graph calls: exchanges advance when the graph says so, memories commit late.

A graph is laid out once and then runs by itself: nothing in it can wait until all gradients of the step have come
back. So every bucket decodes as soon as its own last collective is done, and what becomes of the memories is decided
when nothing is under way any more: at the first call of the next step, or when the state is asked for. If any gradient
of the step was flagged as not finite, on any worker, all memories stay as they were.

The calls of a step: ``begin``; ``launch``, ``advance`` between rounds, ``land``; and ``rest`` and ``flushed`` if
``land`` says so.
"""

from __future__ import annotations

import json
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from hvd_compress import kernels
from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import Array, Broadcast
from hvd_compress.kernels import Float32, UInt8
from hvd_compress.momentum import MeanMomentum
from hvd_compress.runtime.agreement import check_proposals
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.runtime.graph_plans import GraphPlans
from hvd_compress.runtime.graph_step import TracedBucket, TracedCall
from hvd_compress.runtime.graph_steps import GraphSteps
from hvd_compress.runtime.graph_transport import (
    CollectiveSpec,
    GraphTransport,
    PendingCollective,
    nothing,
)
from hvd_compress.runtime.world import World
from hvd_compress.topology import Topology

REPORTS = 8
"""Steps that Horovod does by itself are counted in parts of what is left of them, so that there are several times."""

_log = logging.getLogger(__name__)


class GraphEngine:
    """See the module's docstring.

    Args:
        compressor: this worker's compressor.
        label: begins the names of all collectives; the same on every worker.
        world: tells which workers this one is among now; asked at the beginning of every step.
        gather: brings every worker's record (uint8, of any size) together, blocking: one after the other, in rank
            order.
        elastic: whether graphs are laid out for any number of workers.
    """

    def __init__(
        self,
        compressor: Compressor,
        label: str,
        world: Callable[[], World],
        gather: Callable[[UInt8], UInt8],
        *,
        elastic: bool = False,
    ) -> None:
        self.label = label
        self.elastic = elastic
        self._compressor = compressor
        self._look = world
        self._world = world()
        self._gather = gather
        self._agreed = False
        rank, topology, mpi = self._world[1:]
        self._transport = GraphTransport(rank, topology, mpi)
        self._core = StepCore(compressor, label, rank, topology.workers, topology=topology, mpi=mpi)
        self.plans = GraphPlans(self._core, elastic=elastic)
        self._kernels = kernels.get()
        self._lock = threading.RLock()
        self._traced_buckets: list[TracedBucket] = []
        self._steps = GraphSteps(self._core)
        self._eager_calls = 0  # among these workers
        self._plain = 0, 0  # steps that Horovod does by itself, and the bytes of each
        self.plain_left: Callable[[], int] = lambda: 0
        """Tells how many of these are still to come; the graph counts them."""
        compressor.runtime.statistics.settle = self.settle

    @property
    def rank(self) -> int:
        """This worker's rank."""
        return self._world.rank

    @property
    def topology(self) -> Topology:
        """Which workers share a node."""
        return self._world.topology

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self.topology.workers

    @property
    def world_number(self) -> int:
        """The number of the world that the last step was begun in."""
        return self._world.number

    def prepare(self, weights: Mapping[str, int]) -> dict[str, str]:
        """Return the kinds of a call's parameters; ``weights`` as in ``Preparation``. What is wrong is said before the
        first step, on all ranks."""
        self._core.prepare(weights, agreed=self._agreed)
        return self._core.kinds

    def proposal(self) -> UInt8:
        """Return what this worker is about to do in the calls traced so far, for the others to compare."""
        layout = [[parameter.size for parameter in traced.members] for traced in self._traced_buckets]
        return self._core.propose(
            list(self._core.buckets.parameters()), self._step, layout, complete=False, compare_names=False
        )

    def traced_bucket(self, members: Sequence[Parameter]) -> TracedBucket:
        """Return the bucket of these parameters: the same one whenever the same call is traced again.

        Another set of parameters has another bucket. A parameter's memory exists once: where the last step that
        reduced it left it, and from there it moves to the bucket of the next.
        """
        wanted = tuple(members)
        found = next((traced for traced in self._traced_buckets if traced.members == wanted), None)
        if found is not None:
            return found
        names = {parameter.name for parameter in wanted}
        with self._lock:
            rivals = [traced for traced in self._traced_buckets if not names.isdisjoint(traced.parameters.parts)]
            self._steps.settle_all(rivals)
            traced = TracedBucket(self._core.new_bucket(f"bucket{len(self._traced_buckets)}", wanted), rivals=rivals)
            for rival in rivals:
                rival.rivals.append(traced)
            self._traced_buckets.append(traced)
            if self._agreed:
                self._core.check_restored()
                self._core.tell_of_missing()
        return traced

    def standalone(self, size: int, name: str, *, eager: bool) -> TracedBucket:
        """Make a bucket outside any optimizer: it has no memory, and no step. For a traced call, which may run many
        times, or for one ``eager`` call; these the workers make in the same order."""
        return TracedBucket(self._core.standalone(name, size), standalone=True, eager=eager)

    def begin(self, call: TracedCall) -> Float32:
        """Let a step of ``call`` begin. Make sure, before anything of it is sent, that all workers are about to do the
        same. The graph calls it before Horovod gets the gradients that it reduces itself, too: those of a worker that
        goes on would wait for a worker that does not.

        Return a ticket (float32, one element), which the graph is to hold until the step has come to its end. When
        something else in the graph raises an error before, the ticket goes: nothing else would tell of that.

        Raises:
            RuntimeError, ValueError: they are not; the same on every worker. Or an earlier step has failed.
        """
        with self._lock:
            try:
                self._enter_step()
            except BaseException as error:
                self._core.fail(error, [])
                raise
            ticket: Float32 = self._kernels.empty(1)  # TensorFlow copies what is not aligned
            ticket[:] = 0
            held = weakref.ref(ticket)
            self._steps.begin(call, lambda: held() is None)
            return ticket

    def plan(self, traced: TracedBucket) -> str:
        """Return which of its plans, or of the variants of the one that it has, a bucket follows in the step that
        begins."""
        with self._failing(traced), self._lock:
            self._begin(traced)
            self._take_over(traced)
            if traced.variant is not None:
                return traced.variant
            traced.parameters.bucket.step = traced.parameters.step
            return self._core.phases.plan(traced.parameters.bucket)

    def plain_steps(self, nbytes: int) -> int:
        """Return for how many steps, from the one that begins on, Horovod reduces all gradients itself: ``nbytes`` in
        each. When these are over, it is asked again."""
        with self._lock:
            self._count_plain(0)
            if not self._agreed or self._look().number != self._world.number:
                return 0  # before their first step the workers agree
            self._steps.settle_all(self._traced_buckets)
            self._steps.done_before(self._step)
            steps = self._core.phases.plain_steps(self._step)
            self._plain = min(steps, max(1, steps // REPORTS)), nbytes
            return self._plain[0]

    def launch(
        self, call: TracedCall | None, traced: TracedBucket, plan: str, pieces: Sequence[Float32], finite: bool
    ) -> Array:
        """Start a bucket's exchange with its gradients (float32, flat); return what the first collective takes."""
        with self._failing(traced):
            with self._lock:
                self._begin(traced)
                if call is not None:
                    self._enter(call, traced)
                plans = self._core.phases.plans(traced.bucket)
            with self._timed(traced):
                run = self._core.begin(traced.parameters, pieces, finite, plan if plan in plans else "".join(plans))
                traced.flushed = False
                run.launch(self._transport)
            pending: PendingCollective = run.handle
            return pending.array

    def root(self, traced: TracedBucket) -> int:
        """Return the root of the broadcast that a bucket's exchange has just yielded."""
        collective = traced.parameters.exchange.handle.collective
        return collective.root if isinstance(collective, Broadcast) else 0

    def advance(self, traced: TracedBucket, result: Array, following: CollectiveSpec) -> Array:
        """Take the result of a collective; return what the next one takes."""
        with self._failing(traced):
            with self._timed(traced):
                run = self._deliver(traced, result)
            if run.landed:  # not finite, and all workers know: the collectives that are laid out run empty
                return nothing(following, self.rank, self.topology)
            pending: PendingCollective = run.handle
            op, scope = getattr(pending.collective, "op", ""), pending.collective.scope
            if (pending.array.dtype, op, scope) != (following.dtype, following.op, following.scope):
                if run.bucket.hollow:
                    return nothing(following, self.rank, self.topology)
                raise TypeError(
                    f"{type(self._compressor).__name__}.exchange yielded {pending.array.dtype} {op} {scope} where it "
                    f"yielded {following.dtype} {following.op} {following.scope} before; under TensorFlow these must "
                    "be the same in every step"
                )
            return pending.array

    def land(self, traced: TracedBucket, result: Array, scale: float, *, used: bool = True) -> tuple[Float32, bool]:
        """Take the last result. Return the mean times ``scale``, to be used until nobody refers to it any more, and
        whether the workers want to flush: then they all go on with ``rest``.

        If nothing is made of the mean (it is not ``used``), the step leaves memories as they are.
        """
        with self._failing(traced):
            run = traced.parameters.exchange
            if not run.landed:
                self._deliver(traced, result)
            started = perf_counter()
            mean = traced.buffer(self._kernels)
            if run.flags & header.NONFINITE:
                run.abandon(mean)
            else:
                run.decode(mean)
                if run.mean is not mean:
                    mean[:] = run.mean
                    run.mean = mean
                if scale != 1:
                    mean *= np.float32(scale)
            if traced.step is None:
                run.commit()
                traced.parameters.run = None
                traced.parameters.step += 1  # random numbers differ from call to call
                return mean, False
            with self._lock:
                self._core.count(traced.parameters)
                self._core.total.skipped_steps += bool(run.flags & ~traced.step.flags & header.NONFINITE)
                self._core.total.decompress += perf_counter() - started
                traced.step.flags |= run.flags
                if not used:  # Horovod skips what follows, where there is one worker
                    traced.step.flags |= header.DISCARD
                    traced.step.means = 0
            return mean, used and run.flags == header.FLUSH and traced.bucket.memory.holds_back

    def can_flush(self, traced: TracedBucket) -> bool:
        """Return whether ``land`` may ask for a flush of this bucket."""
        return self._compressor.can_flush and bool(traced.bucket.memory.arrays())

    def rest(self, traced: TracedBucket) -> Float32:
        """Return what the step leaves in the memory, to be summed over the workers; a copy."""
        traced.flushed = True
        rest: Float32 = np.concatenate(traced.parameters.bucket.memory.flush_parts())
        with self._lock:
            self._core.total.sent_bytes += rest.nbytes
        return rest

    def flushed(self, traced: TracedBucket, total: Float32, scale: float) -> Float32:
        """Return the mean with what was left over, from the sum of the workers' ``rest``."""
        mean = traced.buffer(self._kernels)
        held = traced.parameters.bucket.memory.take_flush(total * np.float32(1 / self.workers))
        np.multiply(held, np.float32(scale), out=mean)
        mean += traced.parameters.exchange.mean
        return mean

    @property
    def momentum(self) -> MeanMomentum | None:
        """What the compressor applies to means; see ``Compressor.mean_momentum``."""
        return self._core.momentum

    def restore_momenta(self, sizes: Mapping[str, int]) -> None:
        """Take over what a saved state has of the momenta of these parameters' means, as ``StepCore`` does."""
        self._core.restore_momenta(sizes)

    def with_momentum(
        self, call: TracedCall, name: str, reduced: Float32, weight: Float32 | None, factor: float, *, compressed: bool
    ) -> Float32:
        """Return what takes the place of a parameter's mean times ``factor``, flat: what it is with its momentum.

        Of a ``compressed`` parameter, whose gradients have had theirs, only weight decay has one here; ``weight`` are
        the parameter's elements, or None without weight decay. What is remembered of it is decided with the step.
        """
        with self._lock:
            assert self.momentum is not None
            before = self._steps.staged.get(name)
            if before is not None and not before.settled:
                self._steps.settle(before)
            step = self._steps.staged[name] = self._steps.join(call, self._step)
            unit = np.float32(factor)
            if unit == 0 or not np.isfinite(unit):  # whatever it is comes to nothing, or to NaN
                step.momenta[name] = np.full_like(reduced, np.nan)
                return reduced
            decay = None if weight is None else weight * (np.float32(self.momentum.weight_decay) / unit)
            if compressed:
                assert decay is not None
                added, step.momenta[name] = self.momentum.of_decay(name, decay)
                return reduced + added * unit
            result, step.momenta[name] = self.momentum.of_mean(name, reduced / unit, decay)
            return result * unit

    def settle(self) -> None:
        """Decide what becomes of the memories of all steps that are over."""
        with self._lock:
            self._count_plain(self.plain_left())
            self._steps.settle_over(self._traced_buckets)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat.

        Raises:
            RuntimeError: a step is under way.
        """
        self.settle()
        for traced in self._traced_buckets:
            if traced.step is not None:
                name = traced.members[0].name
                raise RuntimeError(f"a step is under way: the gradient of {name!r} has not come back yet")
        return self._core.state_dict(layout=True)

    def drop(self) -> None:
        """Settle the steps that are complete, and forget the others: nobody waits for their collectives any more."""
        with self._lock:
            self._steps.settle_staged()
            self._steps.settle_all(self._traced_buckets)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to what ``state_dict`` returned, or to the beginning. All workers do."""
        with self._lock:
            self._steps.forget(self._traced_buckets)
            self._core.restore(state, rebuild=False)
            self._steps.go_on_from(self._step)
            self._agreed = False

    def _count_plain(self, left: int) -> None:
        """Count the steps in which Horovod reduced all gradients itself, but for those that are still to come."""
        steps, nbytes = self._plain[0] - left, self._plain[1]
        self._plain = left, nbytes
        if steps:
            self._core.pass_over((traced.parameters for traced in self._traced_buckets), steps, nbytes)

    @property
    def _step(self) -> int:
        return max((traced.parameters.step for traced in self._traced_buckets), default=0)

    def _begin(self, traced: TracedBucket) -> None:
        """Do before a bucket begins a step what ``begin`` does, and what becomes of the bucket among other workers."""
        if traced.standalone:
            self._notice_world()
        else:
            self._enter_step()
        if traced.world != self._world.number:
            traced.world = self._world.number
            traced.variant = self.plans.variant(traced.bucket)
            if traced.standalone:  # random numbers differ from call to call
                traced.parameters.step = self._eager_calls if traced.eager else 0
                self._eager_calls += traced.eager

    def _enter_step(self) -> None:
        """Notice that the workers have changed; and before their first step, make sure that all are about to do the
        same."""
        self._notice_world()
        self._core.check()
        self._agree()

    def _notice_world(self) -> None:
        world = self._look()
        if world.number != self._world.number:
            self._enter_world(world)

    def _enter_world(self, world: World) -> None:
        """Go on among other workers. A step that is complete is settled, another one leaves no trace.

        Raises:
            RuntimeError: there are more or fewer of them, and the graph is laid out for as many as there were.
        """
        if world.topology.workers != self.workers and not self.elastic:
            raise RuntimeError(
                f"there are {world.topology.workers} workers now, and {self._compressor!r} is laid out in a graph for "
                f"{self.workers}, as Horovod's own operations are: set HOROVOD_ELASTIC=1 before the first step (as "
                "horovodrun --min-np does), or make a new compressor and trace the step anew"
            )
        if self._core.phases.asks_for_nodes and world.topology != self.topology:
            raise RuntimeError(
                f"the workers have changed, and {self._compressor!r} is laid out in a graph for the nodes that they "
                "were on: make a new compressor and trace the step anew"
            )
        self._steps.settle_staged()
        self._steps.settle_all(self._traced_buckets)
        self._steps.done_before(self._step)
        self._world = world
        self._eager_calls = 0
        self._transport = GraphTransport(world.rank, world.topology, world.mpi)
        self._core.enter_world(world.rank, world.topology, world.mpi)
        self._agreed = False

    def _agree(self) -> None:
        """Before the first step among these workers, make sure that all are about to do the same, and take over the
        progress of those that have survived a change. If they do not agree, none of the other buckets begins either,
        which threads of their own may be about to launch."""
        if self._agreed:
            return
        self._agreed = True
        try:
            agreed = check_proposals(self._gather(self.proposal()))
            if agreed.leader is not None:
                mine = self._core.tell_progress(layout=True) if agreed.leader == self.rank else np.zeros(0, np.uint8)
                self._core.take_over(json.loads(self._gather(mine).tobytes()))
        except BaseException as error:
            self._core.fail(error, [])
            raise
        self._core.tell_of_missing()
        self._core.train_among_these(agreed.loss)
        self._steps.go_on_from(self._step)
        self._core.phases.on_agreement(self._step)

    def _enter(self, call: TracedCall, traced: TracedBucket) -> None:
        """Join the step of ``call`` that has begun."""
        self._take_over(traced)
        traced.step = self._steps.join(call, traced.parameters.step)
        traced.step.traced_buckets.append(traced)

    def _take_over(self, traced: TracedBucket) -> None:
        """Let the memories of a bucket's parameters move in from where the last step left them."""
        if traced.rivals:
            self._steps.settle_all(traced.rivals)
            self._core.buckets.claim(traced.parameters)

    def _deliver(self, traced: TracedBucket, result: Array) -> ExchangeRun:
        run = traced.parameters.exchange
        if not run.landed:
            run.handle.result = result
            run.advance(self._transport)
        return run

    @contextmanager
    def _timed(self, traced: TracedBucket) -> Iterator[None]:
        """Count the seconds inside as compression, for exchanges of a step."""
        started = perf_counter()
        yield
        if traced.step is not None:
            with self._lock:
                self._core.total.compress += perf_counter() - started

    @contextmanager
    def _failing(self, traced: TracedBucket) -> Iterator[None]:
        """See to it that an error inside leaves no trace of the step, and is what the next step names as its cause."""
        try:
            yield
        except BaseException as error:
            with self._lock:
                step, traced.step = traced.step, None
                if traced.standalone:  # there is no next step
                    traced.parameters.run = None
                elif step is None:  # the step had not begun
                    self._core.fail(error, [])
                else:
                    self._core.fail(error, [other.parameters for other in step.traced_buckets])
                    for other in step.traced_buckets:
                        other.step = None
                    step.settled = True
            raise
