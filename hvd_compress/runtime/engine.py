"""The scheduler that waits: one worker's side of a training step on a transport.

A driver owns an engine and a transport. It calls ``add`` for every gradient and ``finish`` (or iterates ``finishing``)
when all are in; ``means`` then has the results. The steps of a step:

1. ``add`` collects gradients; a complete bucket's exchange starts at once, so that it overlaps with the backward pass.
   In the first step every parameter is a bucket of its own, and nothing starts before all workers have agreed. With a
   ``worker`` thread the backward pass does not wait for the algorithm either, until the last gradient has come; what is
   exchanged is the same.
2. ``finishing`` waits for the last collective of every exchange, and only then decides: if any worker flagged a
   gradient that is not finite, all memories stay as they were and no mean is to be used; else all exchanges decode.
   Where nothing is compressed, an all-reduce of their own carries the workers' flags.
3. If any worker asked for a flush, what the memories hold is all-reduced too.
4. After the first step rank 0's order of arrival is broadcast, and parameters are fused to buckets in that order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import Broadcast
from hvd_compress.kernels import CorruptPayload, Float32, Kernels
from hvd_compress.momentum import MeanMomentum
from hvd_compress.runtime import outcome
from hvd_compress.runtime.agreement import Agreement, Agreements, digest_of
from hvd_compress.runtime.bucketing import Parameter, plan_buckets
from hvd_compress.runtime.buckets import ParameterBucket, naming
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.filling import FillingBucket, FillingBuckets
from hvd_compress.runtime.schedule import startable
from hvd_compress.runtime.transport import Handle, Transport
from hvd_compress.runtime.under_way import ExchangesUnderWay


class Engine:
    """See the module's docstring.

    Args:
        compressor: this worker's compressor.
        transport: carries the collectives.
        parameters: those that are compressed, in the same order on every worker.
        label: begins the names of all collectives; the same on every worker. With ``agreements``, what tells these
            parameters from others' follows it, so that workers may begin with several models in different orders.
        expected: the number of gradients, compressed or not, that come by in a step.
        names: those of all weights in the model's order, if some of them are not compressed.
        uncompressed: the element counts of the parameters that are left to the framework, by name; only a compressor
            that gives their means a momentum asks for them.
        worker: of one thread; takes compression off the thread that calls ``add``.
        agreements: those of the transport's workers, if several engines share it.
        refused: an agreement of these workers that has failed already. The step goes on to where the others notice, so
            that none waits for this one.
        kernel_sets: those for every place that gradients are in; None: all are on the host. Gradients and means are
            what the kernels of their place take, NumPy arrays or tensors.
    """

    def __init__(
        self,
        compressor: Compressor,
        transport: Transport,
        parameters: Sequence[Parameter],
        label: str,
        expected: int,
        names: Sequence[str] = (),
        uncompressed: Mapping[str, int] | None = None,
        worker: Executor | None = None,
        agreements: Agreements | None = None,
        refused: Agreement | None = None,
        kernel_sets: Mapping[str, Kernels] | None = None,
    ) -> None:
        self.means: dict[int, Float32] = {}
        self.buffers: list[Float32] = []  # what the means are views of
        self._kept = False  # whether the last step left its trace
        self.skipped = False
        """Whether the last step came to nothing, on every worker, because a gradient was not finite."""
        self.told = True
        """Whether the workers have told each other, in the last step, of all that is not finite."""
        self.discarded = False
        """Whether some worker has asked that the last step be discarded."""
        self._core = StepCore(
            compressor,
            label,
            transport.rank,
            transport.workers,
            topology=transport.topology,
            simulated=transport.simulated,
            mpi=transport.mpi,
            kernel_sets=kernel_sets,
        )
        self._transport = transport
        self._parameters = parameters
        self._expected = expected
        self._exchanges = ExchangesUnderWay(self._core, transport, worker)
        self._filling = FillingBuckets(self._core, parameters)
        self._order: list[int] = []
        self._arrived = 0
        self._complete: list[FillingBucket] = []
        self._overflow = False
        self._checks: list[Callable[[], bool]] = []
        self._abandoned = False
        self._agreement: Agreement | None = None
        self._begin_names(label, agreements)
        sizes = {parameter.name: parameter.size for parameter in parameters}
        self._core.prepare({name: sizes.get(name, 0) for name in names or sizes})
        self._filling.restore()
        self._core.restore_momenta({**sizes, **(uncompressed or {})})
        self.step = self._core.saved.step
        self._propose(label, agreements, refused)

    @property
    def busy(self) -> bool:
        """Whether a step is under way."""
        return self._arrived > 0

    def add(self, index: int, gradient: Float32, *, frozen: bool = False) -> None:
        """Hand over the gradient (float32, flat; read later, not copied) of parameter ``index``.

        What a ``frozen`` parameter holds back waits until it is thawed; its gradient is zeros. Where it is frozen on
        all workers, ``rest`` follows when the step is finished.

        Raises:
            RuntimeError: the gradient came twice in one step, or an earlier step ended with an error.
        """
        self._begin()
        try:  # (not the context manager, which costs a microsecond for every gradient)
            filling, position = self._filling.place(index)
        except BaseException as error:
            self._fail(error)
            raise
        parameter = self._parameters[index]
        if filling.bucket.run is not None or filling.pieces[position] is not None:
            raise RuntimeError(f"the gradient of {parameter.name!r} came twice in one step")
        try:
            if frozen or self._core.buckets.frozen:
                self._core.buckets.freeze(filling.bucket, parameter.name, frozen)
            filling.put(position, gradient)
            self._order.append(index)
            if filling.missing == 0:
                self._complete.append(filling)
            self._advance()
        except BaseException as error:
            self._fail(error)
            raise

    def add_uncompressed(self, nbytes: int, finite: bool | Callable[[], bool]) -> None:
        """Note a gradient that the framework reduces itself: its size, and whether it is finite on this worker, or what
        tells so when all gradients have come. That is asked where the algorithms run."""
        self._begin()
        try:
            if callable(finite):
                self._checks.append(finite)
            else:
                self._overflow = self._overflow or not finite
            self._core.total.sent_bytes += nbytes
            self._core.total.dense_bytes += nbytes
            self._advance()
        except BaseException as error:
            self._fail(error)
            raise

    def finish(self) -> None:
        """Complete the step, blocking."""
        for handle in self.finishing():
            started = perf_counter()
            with self._failing():
                self._transport.wait(handle)
            self._core.total.wait += perf_counter() - started

    def rest(self, index: int) -> None:
        """Have nothing of the finished step become of parameter ``index``, which all workers had frozen.

        Its mean is made zeros: an algorithm that does not treat every element by itself puts the neighbours' gradients
        there, too. What this worker remembers of that is taken back, so that mean and memory still make the gradients.
        """
        self.means[index][:] = 0
        self._core.buckets.rest(self._parameters[index].name)

    def abandon(self) -> None:
        """Bring a step that began and will not end to its end, blocking, and leave no trace of it on this worker.

        Collectives that other workers wait for are run; where that is possible still, they are told to skip the step.
        """
        self.begin_abandoning()
        self.finish()

    def begin_abandoning(self) -> None:
        """Make what is under way a step that leaves no trace; ``finish`` follows."""
        self._begin()
        self._overflow = self._abandoned = True
        self._filling.complete_layout()
        if not self._filling.fused:
            self._order += sorted(set(range(len(self._parameters))) - set(self._order))

    def enter_world(
        self,
        transport: Transport,
        label: str,
        agreements: Agreements | None = None,
        refused: Agreement | None = None,
    ) -> None:
        """Go on among other workers, whom ``transport`` reaches. The arguments are those of the class.

        A step that is under way leaves no trace on this worker; that an earlier one has failed is forgotten. Before
        anything of the next is sent, all agree anew, and go on from the step of those that have come furthest.
        """
        self.drop()
        self._transport = self._exchanges.transport = transport
        self._begin_names(label, agreements)
        self._core.enter_world(transport.rank, transport.topology, transport.mpi)
        self._propose(label, agreements, refused)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to what ``state_dict`` returned, or to the beginning. All workers do, and then
        call ``enter_world`` before they go on."""
        self.drop()
        self._core.restore(state, rebuild=True)
        self._filling.restore()
        self.step = self._core.saved.step

    def drop(self) -> None:
        """Forget a step that is under way, without a trace: nobody waits for its collectives any more."""
        self._exchanges.cease()
        self._core.buckets.roll_back()
        self.means.clear()
        self.buffers.clear()
        self._reset()

    def agreeing(self) -> Iterator[Handle]:
        """Check that all workers have the same configuration, parameters and state, and take over the progress of those
        that have survived a change of the workers. Nothing is sent before. Yields what must be waited for.

        Raises:
            ValueError: they differ, or one could not restore its state; the same message on every worker.
        """
        if self._agreement is None:
            return
        with self._failing():
            agreed = yield from self._agreement.completing()
            if self._shares_agreements:
                self._core.label += f".{self._agreement.place}"
            self._agreement = None
            if agreed.leader is not None:
                yield from self._follow(agreed.leader)
            self._core.train_among_these(agreed.loss)
            self._core.phases.on_agreement(self.step)

    def finishing(self) -> Iterator[Handle]:
        """Complete the step; yield every handle that must be done before the iteration goes on."""
        self._core.check()
        yield from self.agreeing()
        with self._failing():
            yield from self._landing()
            total = self._core.total
            started = perf_counter()
            waited = total.wait
            yield from self._settling()
            total.decompress += perf_counter() - started - (total.wait - waited)
            if not self._filling.fused:
                with self._core.decoded():
                    yield from self._fuse()
            self._reset()
            self._core.phases.step_done(self.step)
            self.step += 1
            total.steps += 1

    @property
    def fused(self) -> bool:
        """Whether all buckets are made, and are those of the steps to come."""
        return self._filling.fused

    @property
    def momentum(self) -> MeanMomentum | None:
        """What the compressor applies to means; see ``Compressor.mean_momentum``."""
        return self._core.momentum

    def with_momentum(self, name: str, mean: Float32, decay: Float32 | None = None) -> Float32:
        """Return what takes the place of the mean of a parameter that the framework has reduced (float32, flat): its
        momentum, if the compressor has one. ``decay`` as in ``MeanMomentum``. Once the step is finished."""
        if self.momentum is None:
            return mean
        return self._keep(name, *self.momentum.of_mean(name, mean, decay, self._core.loss_scale))

    def momentum_of_decay(self, name: str, decay: Float32) -> Float32:
        """Return what is added to the mean of a compressed parameter for weight decay (float32, flat)."""
        assert self.momentum is not None
        return self._keep(name, *self.momentum.of_decay(name, decay))

    def _keep(self, name: str, result: Float32, momentum: Float32) -> Float32:
        if self._kept and self.momentum is not None:
            self.momentum.keep({name: momentum})
        return result

    def plain_steps(self) -> int:
        """Return for how many steps, from the next one on, the framework may reduce all gradients itself."""
        return 0 if self._agreement is not None or not self._filling.fused else self._core.phases.plain_steps(self.step)

    def pass_over(self, steps: int, nbytes: int) -> None:
        """Count steps whose gradients, of so many bytes each step, the framework has reduced itself."""
        self.step += steps
        self._core.pass_over((filling.bucket for filling in self._filling), steps, nbytes)

    def rescale(self, factor: float) -> None:
        """Multiply what is held back by ``factor``: gradients come in another unit from now on. Between steps only."""
        self._core.rescale(factor)

    def use_loss_scale(self, scale: float) -> None:
        """Take gradients to be multiplied by ``scale`` from now on, as ``StepCore`` does."""
        self._core.use_loss_scale(scale)

    def rescale_held(self, factors: Mapping[str, float]) -> None:
        """Multiply what is held back of these parameters, by name: the rate at which it will be applied has changed.
        Between steps only."""
        self._core.buckets.rescale_held(factors)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat.

        Raises:
            RuntimeError: a step is under way, or another thread began one meanwhile.
        """
        step = self.step
        if self.busy:
            raise RuntimeError("state_dict must be called between steps, not between backward and synchronize")
        state = self._core.state_dict(layout=self._filling.fused, bare=self._bare)
        if self.busy or self.step != step:
            raise RuntimeError(
                "state_dict was called while another thread began a step: what it copied is of no moment"
            )
        return state

    @property
    def _bare(self) -> int | None:
        """How many steps there have been if nothing is compressed."""
        return None if self._parameters else self.step

    def _begin(self) -> None:
        """Begin a step, or go on with it."""
        if self._core.failure is not None:
            self._core.check()
        if not self._arrived:
            self.means.clear()
            self.buffers.clear()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """See to it that an error inside leaves no trace of the step, and is what the next step names as its cause."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _begin_names(self, label: str, agreements: Agreements | None) -> None:
        """Begin the names of all collectives; the agreement adds what tells these parameters from others' like them."""
        self._shares_agreements = agreements is not None
        self._core.label = label if agreements is None else f"{label}.{digest_of(self._parameters)}"

    def _propose(self, label: str, agreements: Agreements | None, refused: Agreement | None) -> None:
        """Tell the others what this worker is about to do, unless they have ``refused`` it already."""
        if refused is not None:
            self._agreement = refused
            return
        layout = self._filling.layout if self._filling.fused else []
        payload = self._core.propose(self._parameters, self.step, layout, complete=True, compare_names=True)
        self._agreement = (agreements or Agreements(label)).begin(self._transport, payload)

    def _follow(self, leader: int) -> Iterator[Handle]:
        """Take over the progress of the worker ``leader``; yields what must be waited for."""
        mine = self._core.rank == leader
        none = np.zeros(0, np.uint8)
        text = self._core.tell_progress(layout=self._filling.fused, bare=self._bare) if mine else none
        length = Broadcast(np.array([len(text)], np.int64), leader)
        handle = self._transport.start(length, f"{self._core.label}.progress.length")
        yield handle
        (nbytes,) = self._transport.result(handle)
        progress = Broadcast(text.copy() if mine else np.zeros(int(nbytes), np.uint8), leader)
        handle = self._transport.start(progress, f"{self._core.label}.progress")
        yield handle
        told = json.loads(self._transport.result(handle).tobytes())
        numbers = {parameter.name: number for number, parameter in enumerate(self._parameters)}
        layout = [[numbers[name] for name in names] for names in told["layout"]]
        if layout and not (self._filling.fused and layout == self._filling.layout):
            self._filling.lay_out(layout)
        self._core.take_over(told)
        self.step = told["step"]

    def _fail(self, error: BaseException) -> None:
        self._exchanges.cease()
        self._core.fail(error, self._exchanges.buckets)
        self.drop()

    def _reset(self) -> None:
        self._filling.empty()
        self._order.clear()
        self._complete.clear()
        self._exchanges.buckets.clear()
        self._arrived = 0
        self._overflow = self._abandoned = False
        self._checks.clear()

    def _advance(self) -> None:
        """Start what may start, and the later rounds of what is under way."""
        self._arrived += 1
        if self._complete and self._agreement is None:
            buckets = len(self._filling) if self._filling.fused else None
            came_by = self._arrived >= self._expected
            for _ in range(startable(len(self._complete), len(self._exchanges.buckets), buckets, came_by)):
                self._launch(self._complete.pop(0), last=came_by)
            if came_by:  # whoever numbers collectives by what a process has started gets the same numbers everywhere
                self._exchanges.await_worker()
        self._exchanges.advance()

    def _landing(self) -> Iterator[Handle]:
        """Bring every exchange to its last result."""
        self._complete.clear()
        for filling in self._filling:
            if filling.bucket.run is None:
                self._launch(filling, last=True)
        yield from self._exchanges.landing()

    def _launch(self, filling: FillingBucket, *, last: bool) -> None:
        """Begin a bucket's exchange. One of the ``last``, which begin when all gradients have come, also finds out what
        is not known yet of those outside the buckets: any payload tells the others."""
        filling.bucket.step = self.step
        checks: list[Callable[[], bool]] = []
        if last:
            checks, self._checks = self._checks, checks
        with naming(filling.bucket.bucket):
            pieces = filling.take()
        self._exchanges.begin(filling.bucket, pieces, not self._overflow, checks)

    def _settling(self) -> Iterator[Handle]:
        """Decide what becomes of the step, and take its means."""
        flags, buckets = header.NONFINITE if self._abandoned else 0, self._exchanges.buckets
        for bucket in buckets:
            flags |= bucket.exchange.flags
        if not buckets:
            finite = not self._overflow and all(check() for check in self._checks)
            flags |= yield from outcome.telling(self._core, self._transport, finite)
        self.skipped = bool(flags & header.NONFINITE)
        self.discarded = bool(flags & header.DISCARD)
        self._kept = not (self.skipped or self.discarded)
        self.told = all(bucket.exchange.tells for bucket in buckets)
        flushed: list[ParameterBucket] = []
        if not self.skipped:
            outcome.reserve(buckets, flush=flags == header.FLUSH)
        self.skipped = not outcome.decode(buckets, flags)
        if flags == header.FLUSH:
            flushed = [bucket for bucket in buckets if bucket.bucket.memory.holds_back]
            yield from outcome.flushing(self._core, self._transport, flushed)
        self.buffers += [filling.bucket.exchange.mean for filling in self._filling]
        for filling in self._filling:
            self.means.update(zip(filling.indices, filling.bucket.cut(filling.bucket.exchange.mean), strict=True))
            self._core.count(filling.bucket)
        self._core.total.skipped_steps += self.skipped
        self._core.settle(buckets, flags, flushed)

    def _fuse(self) -> Iterator[Handle]:
        order = np.full(len(self._parameters), -1, np.int32)
        order[: len(self._order)] = self._order
        handle = self._transport.start(Broadcast(order), f"{self._core.label}.order")
        yield handle
        leader = [int(index) for index in self._transport.result(handle) if index >= 0]
        count = len(self._parameters)
        if any(index >= count for index in leader):
            raise CorruptPayload(f"rank 0 compresses parameter {max(leader)}, counted from 0, of {count}")
        if sorted(leader) != sorted(self._order):
            odd = sorted(self._parameters[i].name for i in set(leader) ^ set(self._order))
            raise RuntimeError(f"rank 0 and rank {self._transport.rank} compress different parameters: {odd}")
        kinds = [f"{self._core.kinds.get(parameter.name, '')} {parameter.place}" for parameter in self._parameters]
        self._filling.lay_out(plan_buckets(leader, self._parameters, self._core.compressor.bucket_mb, kinds))
