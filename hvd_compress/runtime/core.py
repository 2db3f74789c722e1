"""What every step does alike, whoever schedules it: buckets and their memories, state, agreement, outcomes.

Two schedulers stand on this core. ``Engine`` waits for collectives on a transport; ``GraphEngine`` is called by a graph
whenever one is done. Both make buckets here, run exchanges in them, and settle the outcome of a step here: all its
memories commit, or all of them and the algorithm's state are as they were before it.
"""

from __future__ import annotations

import base64
import copy
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hvd_compress import kernels
from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32, Kernels, UInt8
from hvd_compress.memory import Memory
from hvd_compress.momentum import MeanMomentum
from hvd_compress.phased import MPIJob, Preparation, phases
from hvd_compress.runtime.agreement import device_mark, proposal
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.buckets import BucketStore, ParameterBucket, naming, out_of_memory
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.runtime.losses import Loss, tell_of_loss
from hvd_compress.state import SavedState
from hvd_compress.state_format import MEAN_MOMENTUM, STATE_VERSION
from hvd_compress.topology import NODE, PEERS, Topology

_log = logging.getLogger(__name__)


class StepCore:
    """See the module's docstring. ``label`` begins the names of all collectives and is the same on every worker.
    ``kernel_sets`` are those for every ``Parameter.place``; None: all is on the host."""

    def __init__(
        self,
        compressor: Compressor,
        label: str,
        rank: int,
        workers: int,
        *,
        topology: Topology,
        simulated: bool = False,
        mpi: tuple[int, ...] | None = None,
        kernel_sets: Mapping[str, Kernels] | None = None,
    ) -> None:
        self.compressor = compressor
        self.phases = phases(compressor)
        self.label = label
        self.rank = rank
        self.workers = workers
        self.total = compressor.runtime.statistics.total
        self.kinds: dict[str, str] = {}
        runtime = compressor.runtime
        self.error = ""
        self.failure: BaseException | None = None
        self._decoded = False
        self._unfit = runtime.state_problem
        self.saved = self._saved(runtime.pending_state)
        runtime.pending_state = None
        self._kernel_sets = kernel_sets or {"": kernels.get()}
        self.momentum = self._mean_momentum()
        self.loss_scale = 1.0
        self._momentum_sizes: dict[str, int] = {}
        self.buckets = BucketStore()
        self._topology = topology
        self._simulated = simulated
        self._mpi = mpi
        self._weights: dict[str, int] = {}
        self._beginning: dict[str, Any] | None = None
        """What belongs to no bucket, before the first step."""

    def prepare(self, weights: Mapping[str, int], *, agreed: bool = False) -> None:
        """Let the compressor say what kinds of parameters there are; ``weights`` as in ``Preparation``.

        What is wrong is kept in ``error``, to be told to all workers when they agree.

        Raises:
            OSError, ValueError: it cannot work like this, and the workers have ``agreed`` already.
        """
        mpi = MPIJob(self._mpi, self.label) if self._mpi else None
        self._weights.update(weights)
        try:
            work = Preparation(weights, self.rank, self.workers, self._simulated, mpi, self._topology)
            self.kinds.update(self.phases.prepare(work))
            if self._beginning is None:
                self._beginning = self.phases.shared_state()
            shared, self.saved.shared = self.saved.shared, None
            if shared is not None:
                self._load_shared(shared)
        except (OSError, ValueError) as error:
            if agreed:
                raise
            self.error = self.error or str(error)

    def enter_world(self, rank: int, topology: Topology, mpi: tuple[int, ...] | None = None) -> None:
        """Go on among other workers. What is under way leaves no trace, and no earlier error stands in the way: the
        collectives that it was about are gone. Memories and the algorithm's state stay what they are."""
        self.buckets.roll_back()
        if self.phases.may_be_plain:
            raise RuntimeError(
                f"{self.compressor!r} cannot go on after Horovod was initialized again: make a new compressor"
            )
        self.failure, self._decoded, self.error = None, False, ""
        elsewhere = topology != self._topology or (rank != self.rank and not topology.plain)
        parts_changed = self.phases.asks_for_nodes and bool(self.buckets.made) and elsewhere
        self.rank, self.workers, self._topology, self._mpi = rank, topology.workers, topology, mpi
        self.compressor.runtime.survivor = True
        if self._weights:
            self.prepare(self._weights)
        if parts_changed:
            self.error = self.error or (
                f"the workers have changed, and what {self.compressor!r} holds back depends on which of them share a "
                "node: make a new compressor on every rank"
            )

    def restore(self, state: dict[str, Any] | None, *, rebuild: bool) -> None:
        """Go back to what ``state_dict`` returned (None: to the beginning), bit for bit; what is under way leaves no
        trace. With ``rebuild`` buckets are to be made anew."""
        self.buckets.roll_back()
        self.compressor.runtime.survivor = True
        self.saved = self._saved(state)
        shared, self.saved.shared = self.saved.shared, None
        self.phases.load_shared_state((self._beginning or {}) if shared is None else shared)
        if rebuild:
            self.buckets.clear()
        self.buckets.restore(self.saved)
        self.momentum = self._mean_momentum()
        self.restore_momenta(self._momentum_sizes)

    def progress(self, *, layout: bool, bare: int | None = None) -> dict[str, Any]:
        """Return all of the state but the memory, which workers must have in common to go on. Without ``layout`` the
        buckets are not yet those of the steps to come; there have been so many ``bare`` steps if there never are any,
        because nothing is compressed."""
        buckets = list(self.buckets)
        return {
            "step": max((bucket.step for bucket in buckets), default=self.saved.step if bare is None else bare),
            "steps": [bucket.step for bucket in buckets] if layout else [],
            "layout": [self.buckets.owned(bucket) for bucket in buckets] if layout else [],
            "algorithm": [copy.deepcopy(bucket.bucket.state) for bucket in buckets] if layout else [],
            "shared": self.phases.shared_state(),
        }

    def tell_progress(self, *, layout: bool, bare: int | None = None) -> UInt8:
        """Return ``progress``, and the momenta of means, as text in UTF-8."""
        momenta = self.momentum.state() if self.momentum is not None else {}
        told = {
            **self.progress(layout=layout, bare=bare),
            "momenta": {name: base64.b85encode(momentum.tobytes()).decode() for name, momentum in momenta.items()},
        }
        text = json.dumps(told, default=lambda number: number.item())
        return np.frombuffer(text.encode(), np.uint8)

    def take_over(self, told: Mapping[str, Any]) -> None:
        """Go on from what a worker's ``tell_progress`` told; the buckets are laid out as its are, if they are at all.

        A worker that has come as far keeps its own of the algorithm's state, which may differ from rank to rank in
        what adapts to a rank's gradients. One that has joined the others begins with an empty memory, whatever it was
        given.
        """
        buckets = list(self.buckets)
        keeps = self.compressor.runtime.survivor and [bucket.step for bucket in buckets] == told["steps"]
        for number, bucket in enumerate(buckets):
            bucket.step = told["steps"][number] if told["layout"] else told["step"]
            if told["layout"] and not keeps:
                bucket.bucket.state.clear()
                bucket.bucket.state.update(told["algorithm"][number])
        if self.momentum is not None:
            momenta = {n: np.frombuffer(base64.b85decode(text), np.float32) for n, text in told["momenta"].items()}
            self.momentum.clear()
            self.momentum.restore(momenta, {name: len(momentum) for name, momentum in momenta.items()})
        self.phases.follow(told["shared"], told["step"])
        if not self.compressor.runtime.survivor:
            self._forget()
        self.compressor.runtime.survivor = True

    def _forget(self) -> None:
        """Give up what was restored: it is of another time than what the other workers hold."""
        lost = 0.0
        for bucket in self.buckets:
            if (held := bucket.bucket.memory.held_back()) is not None:
                lost += float(np.square(bucket.bucket.kernels.on_host(held), dtype=np.float64).sum())
            bucket.empty()
        self.saved = self._saved(None)
        self._unfit = self.compressor.runtime.state_problem = ""
        if lost:
            _log.warning(
                "this worker has joined a job that is under way; what was restored here (norm %.3g) is given up",
                math.sqrt(lost),
            )

    def new_bucket(self, name: str, members: Sequence[Parameter]) -> ParameterBucket:
        """Make a bucket of these parameters; their memories move in from where they are."""
        (place,) = {parameter.place for parameter in members}
        size = sum(parameter.size for parameter in members)
        bucket = self._bucket(name, size, self.compressor.new_memory, self._kernel_sets[place])
        bucket.loss_scale = self.loss_scale
        bucket.kind = self.kinds.get(members[0].name, "")
        bucket.members = tuple(parameter.name for parameter in members)
        made = ParameterBucket(bucket, tuple(members))
        bucket.memory.lay_out(list(made.parts.values()))
        made.step = self.saved.restore(bucket, made.parts)
        made.flushed = self.saved.flushed
        try:
            self.compressor.check_bucket_state(bucket.state, bucket.size)
        except (TypeError, ValueError) as error:
            self.error = self.error or f"{self.saved.source}: {error}"
        with naming(bucket):
            self.buckets.add(made)
        return made

    def standalone(self, name: str, size: int) -> ParameterBucket:
        """Make a bucket for a tensor outside any optimizer: it has no memory, and asks for no nodes."""
        return ParameterBucket(self._standalone(name, size), (Parameter(name, size),), standalone=True)

    def restore_momenta(self, sizes: Mapping[str, int]) -> None:
        """Take over what a saved state has of the momenta of these parameters' means; ``sizes`` are element counts.

        What is wrong is kept in ``error``."""
        self._momentum_sizes.update(sizes)
        momenta = self.saved.take_momenta(sizes)
        if momenta and self.momentum is None:
            self.error = self.error or (
                f"the saved state has momenta of the means of {', '.join(momenta)}, which this compressor does not keep"
            )
        elif self.momentum is not None:
            self.error = self.momentum.restore(momenta, sizes) or self.error

    def trial(self, bucket: Bucket) -> Bucket:
        """Make a bucket like this one, with a memory of its own, to try an exchange out in."""
        if bucket.members:
            twin = self._bucket(bucket.name, bucket.size, self.compressor.new_memory, bucket.kernels)
        else:
            twin = self._standalone(bucket.name, bucket.size)
        twin.kind, twin.members, twin.tentative = bucket.kind, bucket.members, True
        return twin

    def pass_over(self, buckets: Iterable[ParameterBucket], steps: int, nbytes: int) -> None:
        """Count steps of these buckets in which the framework reduced all gradients itself, ``nbytes`` in each."""
        for bucket in buckets:
            bucket.step += steps
        total, runtime = self.total, self.compressor.runtime
        total.steps += steps
        total.sent_bytes += steps * nbytes
        total.dense_bytes += steps * nbytes
        runtime.flush_requested = runtime.discard_requested = False  # there is nothing to send or to keep

    def rescale(self, factor: float) -> None:
        """Multiply all that is held back: gradients come in another unit from now on. Between steps only."""
        self.buckets.rescale(factor)
        if self.momentum is not None:
            self.momentum.rescale(factor)
        self.saved.rescale(factor)

    def use_loss_scale(self, scale: float) -> None:
        """Take gradients to be multiplied by ``scale`` from now on. Between steps only; what is held back stays as it
        is (see ``rescale``)."""
        if scale != self.loss_scale:
            self.loss_scale = scale
            for bucket in self.buckets:
                bucket.bucket.loss_scale = scale

    def propose(
        self, parameters: Sequence[Parameter], step: int, layout: list[Any], *, complete: bool, compare_names: bool
    ) -> UInt8:
        """Return what this worker is about to do, for the others to compare. With ``complete``, no other parameters
        will come later."""
        names = [parameter.name for parameter in parameters]
        places = {parameter.place for parameter in parameters}
        survivor = self.compressor.runtime.survivor
        return proposal(
            self.compressor,
            parameters,
            step,
            layout,
            (*self.saved.restored(names), self.phases.restored()),
            self.error,
            unfit=self._unfit or self.saved.problem(names, complete=complete, grown=survivor),
            survivor=survivor,
            trained_among=self.compressor.runtime.trained_among,
            compare_names=compare_names,
            devices="".join(device_mark(self.compressor, self._kernel_sets[place]) for place in sorted(places)),
        )

    def check_restored(self) -> None:
        """Raise ValueError if the saved state does not fit the buckets so far: for those that were made when the
        workers had agreed already."""
        if problem := self.error or self.saved.problem([], complete=False):
            raise ValueError(problem)

    def tell_of_missing(self) -> None:
        """Say of which parameters the saved state has nothing, where that is no error: some may be new."""
        names = self.saved.newly_missing()
        if names and self.rank == 0 and self.compressor.error_feedback:
            _log.warning(
                "%s lacks the parameters %s: nothing is held back of them yet", self.saved.source, ", ".join(names)
            )

    def train_among_these(self, loss: Loss | None) -> None:
        """Take note that all workers that there are have agreed, and tell of those that are gone if that is this one's
        to do."""
        self.compressor.runtime.trained_among = self.workers
        if loss is not None and loss.teller == self.rank:
            tell_of_loss(loss, {**self.saved.remaining(), **self.buckets.read()})

    def begin(
        self,
        bucket: ParameterBucket,
        pieces: Sequence[Float32],
        finite: bool,
        plan: str | None = None,
    ) -> ExchangeRun:
        """Begin a bucket's exchange with its gradients (float32, flat). ``finite`` tells of gradients outside the
        buckets."""
        inner = bucket.bucket
        inner.rank, inner.workers = self.rank, self.workers
        inner.topology = Topology.single(self.workers) if bucket.standalone else self._topology
        inner.step = bucket.step
        inner.overflow = not finite
        inner.target = inner.sent = 0
        inner.memory.begin(list(pieces))
        bucket.run = ExchangeRun(self.compressor, inner, self.label, plan, clips=not bucket.standalone)
        return bucket.run

    def count(self, bucket: ParameterBucket) -> None:
        """Add to the statistics what this worker sent in an exchange that has landed."""
        sent = bucket.exchange.sent_bytes
        self.total.sent_bytes += sum(sent.values()) + bucket.bucket.extra_sent_bytes
        self.total.node_bytes += sent[NODE]
        self.total.peer_bytes += sent[PEERS]
        self.total.dense_bytes += sum(parameter.size * parameter.itemsize for parameter in bucket.members)

    def settle(
        self, buckets: Collection[ParameterBucket], flags: int, flushed: Collection[ParameterBucket] = ()
    ) -> None:
        """Decide the outcome of a step from what all workers' flags say of it, for all its buckets alike.

        What the memories of ``flushed`` buckets held has been sent.
        """
        keep = not flags & (header.NONFINITE | header.DISCARD)
        for bucket in buckets:
            if keep:
                bucket.exchange.commit()
                bucket.flushed = bucket in flushed
                self.total.target += bucket.bucket.target
                self.total.selected += bucket.bucket.sent
                if bucket in flushed:
                    bucket.bucket.memory.clear()
                    bucket.bucket.state.clear()  # what a rank adapted to its gradients; now the ranks' states are alike
            else:
                bucket.exchange.rollback()
            bucket.run = None
            bucket.step += 1
        runtime = self.compressor.runtime
        remembers = any(bucket.bucket.memory.holds_back for bucket in buckets)
        if not remembers or (keep and all(b in flushed for b in buckets if b.bucket.memory.holds_back)):
            runtime.flush_requested = False
        if not remembers or flags & header.DISCARD:
            runtime.discard_requested = False

    @contextmanager
    def decoded(self) -> Iterator[None]:
        """Remember of an error inside of ``with`` that the step has been decoded, and settled: what it sent is lost."""
        try:
            yield
        except BaseException:
            self._decoded = True
            raise

    def fail(self, error: BaseException, buckets: Collection[ParameterBucket]) -> None:
        """Leave no trace of a step that ended with an error, and remember the error for those who go on."""
        self.failure = self.failure or error
        for bucket in buckets:
            if bucket.run is not None:
                self._decoded = self._decoded or bucket.run.decided
                bucket.run.rollback()
                bucket.run = None

    def check(self) -> None:
        """Raise RuntimeError if an earlier step ended with an error: its collectives may still be under way, and the
        other workers at another place."""
        if self.failure is not None:
            kept = "The step had begun to decode, and what it sent is lost" if self._decoded else "It left no trace"
            raise RuntimeError(
                f"an earlier step of {self.compressor!r} did not come to its end: "
                f"{type(self.failure).__name__}: {self.failure}. {kept}; to go on, make a new compressor on every rank "
                "and give it state_dict() of this one"
            ) from self.failure

    def state_dict(self, *, layout: bool, bare: int | None = None) -> dict[str, Any]:
        """Return this worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat. The arguments
        are those of ``progress``."""
        memory = self.buckets.read()
        for name, momentum in (self.momentum.state() if self.momentum is not None else {}).items():
            memory.setdefault(name, {})[MEAN_MOMENTUM] = momentum
        return {
            "version": STATE_VERSION,
            "compressor": self.compressor.name,
            "rank": self.rank,
            "workers": self.workers,
            **self.progress(layout=layout, bare=bare),
            "memory": {**self.saved.remaining(), **memory},
            "flushed": self.buckets.flushed(),
            "loss_scale": 1.0,
        }

    def _load_shared(self, shared: dict[str, Any]) -> None:
        """Take over what belongs to no bucket. Raise ValueError that says where it comes from, if that cannot be."""
        try:
            self.phases.load_shared_state(shared)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.saved.source}: {error}") from error

    def _saved(self, state: dict[str, Any] | None) -> SavedState:
        """Return a state to be restored; one of this process is this worker's, whatever its rank was."""
        if state is not None and self.compressor.runtime.survivor:
            state = {**state, "rank": self.rank, "workers": self.workers}
        saved = SavedState(state, self.rank, self.workers, self.compressor.runtime.state_source)
        if state is not None and self.compressor.runtime.loss_scale_refusal:  # gradients are taken to come without one
            saved.rescale(1 / state["loss_scale"])
        return saved

    def _mean_momentum(self) -> MeanMomentum | None:
        momentum = self.compressor.mean_momentum()
        if momentum is not None:
            on_devices = [kernel_set for place, kernel_set in self._kernel_sets.items() if place]
            momentum.kernels = on_devices[0] if on_devices else self._kernel_sets[""]
        return momentum

    def _standalone(self, name: str, size: int) -> Bucket:
        bucket = self._bucket(name, size, Memory, self._kernel_sets[""])
        bucket.topology = Topology.single(self.workers)
        return bucket

    def _bucket(self, name: str, size: int, memory: Any, kernel_set: Kernels) -> Bucket:
        try:
            remembered = memory(kernel_set, size)
        except MemoryError as error:
            raise out_of_memory(name, size, error) from error
        return Bucket(
            name=name,
            size=size,
            memory=remembered,
            kernels=kernel_set,
            rank=self.rank,
            workers=self.workers,
            seed=self.compressor.seed,
            topology=self._topology,
        )
