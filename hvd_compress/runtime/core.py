"""What every step does alike, whoever schedules it: buckets and their memories, state, agreement, outcomes.

Two schedulers stand on this core. ``Engine`` waits for collectives on a transport; ``GraphEngine`` is called by a graph
whenever one is done. Both make buckets here, run exchanges in them, and settle the outcome of a step here: all its
memories commit, or all of them and the algorithm's state are as they were before it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hvd_compress import kernels
from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32, UInt8
from hvd_compress.memory import Memory
from hvd_compress.phased import MPIJob, Preparation, phases
from hvd_compress.runtime.agreement import proposal
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.state import STATE_VERSION, SavedState


@dataclass(eq=False)
class ParameterBucket:
    """A bucket and the parameters in it, one after the other; ``run`` is its exchange while a step is under way."""

    bucket: Bucket
    members: tuple[Parameter, ...]
    step: int = 0
    run: ExchangeRun | None = None
    parts: dict[str, slice] = field(init=False)
    """Where each parameter lies in the bucket, by name."""

    def __post_init__(self) -> None:
        self.parts = {}
        offset = 0
        for name, size, _ in self.members:
            self.parts[name] = slice(offset, offset + size)
            offset += size

    def cut(self, mean: Float32) -> list[Float32]:
        """Return the parameters' parts of a mean, as views."""
        return [mean[part] for part in self.parts.values()]


class StepCore:
    """See the module's docstring. ``label`` begins the names of all collectives and is the same on every worker."""

    def __init__(
        self,
        compressor: Compressor,
        label: str,
        rank: int,
        workers: int,
        *,
        simulated: bool = False,
        mpi: tuple[int, ...] | None = None,
    ) -> None:
        self.compressor = compressor
        self.phases = phases(compressor)
        self.label = label
        self.rank = rank
        self.workers = workers
        self.total = compressor.runtime.statistics.total
        self.kinds: dict[str, str] = {}
        self.error = ""
        self.failure: BaseException | None = None
        self._decoded = False
        self.saved = SavedState(compressor.runtime.pending_state, rank, workers)
        compressor.runtime.pending_state = None
        self._made: list[ParameterBucket] = []
        self._owners: dict[str, ParameterBucket] = {}
        self.frozen: dict[str, dict[str, Float32]] = {}  # the memories that are set aside, by parameter
        self._kernels = kernels.get()
        self._simulated = simulated
        self._mpi = mpi

    @property
    def buckets(self) -> list[ParameterBucket]:
        """The buckets that hold some parameter's memory, in the order in which they were made."""
        owners = set(self._owners.values())
        return [bucket for bucket in self._made if bucket in owners]

    def prepare(self, weights: Mapping[str, int], *, agreed: bool = False) -> None:
        """Let the compressor say what kinds of parameters there are; ``weights`` as in ``Preparation``.

        What is wrong is kept in ``error``, to be told to all workers when they agree.

        Raises:
            OSError, ValueError: it cannot work like this, and the workers have ``agreed`` already.
        """
        mpi = MPIJob(self._mpi, self.label) if self._mpi else None
        try:
            work = Preparation(weights, self.rank, self.workers, self._simulated, mpi)
            self.kinds.update(self.phases.prepare(work))
            shared, self.saved.shared = self.saved.shared, {}
            if shared:
                self.phases.load_shared_state(shared)
        except (OSError, ValueError) as error:
            if agreed:
                raise
            self.error = self.error or str(error)

    def new_bucket(self, name: str, members: Sequence[Parameter]) -> ParameterBucket:
        """Make a bucket of these parameters; their memories move in from where they are."""
        bucket = self._bucket(name, sum(parameter.size for parameter in members), self.compressor.new_memory)
        bucket.kind = self.kinds.get(members[0].name, "")
        bucket.members = tuple(parameter.name for parameter in members)
        made = ParameterBucket(bucket, tuple(members))
        made.step = self.saved.restore(bucket, made.parts)
        self._made.append(made)
        self.claim(made)
        return made

    def standalone(self, name: str, size: int) -> ParameterBucket:
        """Make a bucket for a tensor outside any optimizer: it has no memory."""
        return ParameterBucket(self._bucket(name, size, Memory), (Parameter(name, size),))

    def trial(self, bucket: Bucket) -> Bucket:
        """Make a bucket like this one, with a memory of its own, to try an exchange out in."""
        twin = self._bucket(bucket.name, bucket.size, self.compressor.new_memory)
        twin.kind, twin.members, twin.tentative = bucket.kind, bucket.members, True
        return twin

    def claim(self, bucket: ParameterBucket) -> None:
        """Move the memories of a bucket's parameters in from the buckets that have them. Between steps only.

        The algorithm's state moves along with a bucket whose parameters are all the same.
        """
        if all(self._owners.get(name) is bucket for name in bucket.parts):
            return
        arrays = bucket.bucket.memory.arrays()
        for name, part in bucket.parts.items():
            owner = self._owners.get(name)
            if owner is not None and owner is not bucket:
                for key, source in owner.bucket.memory.arrays().items():
                    arrays[key][part] = source[owner.parts[name]]
                    source[owner.parts[name]] = 0
                if owner.members == bucket.members and not bucket.bucket.state:
                    bucket.bucket.state.update(copy.deepcopy(owner.bucket.state))
                bucket.step = max(bucket.step, owner.step)
            self._owners[name] = bucket

    def freeze(self, bucket: ParameterBucket, name: str, frozen: bool) -> None:
        """Set a parameter's memory aside while it is frozen, and put it back when it is thawed. Between steps only.

        What a parameter holds back would otherwise go on moving it.
        """
        part, arrays = bucket.parts[name], bucket.bucket.memory.arrays()
        if frozen and name not in self.frozen:
            self.frozen[name] = {key: array[part].copy() for key, array in arrays.items()}
            for array in arrays.values():
                array[part] = 0
        elif not frozen and name in self.frozen:
            for key, array in self.frozen.pop(name).items():
                arrays[key][part] += array

    def rescale(self, factor: float) -> None:
        """Multiply all that is held back: gradients come in another unit from now on. Between steps only."""
        held = [bucket.bucket.memory.arrays() for bucket in self.buckets]
        for arrays in [*held, *self.frozen.values()]:
            for array in arrays.values():
                array *= array.dtype.type(factor)
        self.saved.rescale(factor)

    def propose(
        self, parameters: Sequence[Parameter], step: int, layout: list[Any], *, complete: bool, compare_names: bool
    ) -> UInt8:
        """Return what this worker is about to do, for the others to compare. With ``complete``, no other parameters
        will come later."""
        error = self.error or self.saved.problem([parameter.name for parameter in parameters], complete=complete)
        return proposal(self.compressor, parameters, step, layout, error, compare_names=compare_names)

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
        inner.step = bucket.step
        inner.overflow = not finite
        inner.target = inner.sent = 0
        inner.memory.begin(list(pieces))
        bucket.run = ExchangeRun(self.compressor, inner, self.label, plan)
        return bucket.run

    def count(self, bucket: ParameterBucket) -> None:
        """Add to the statistics what this worker sent in an exchange that has landed."""
        assert bucket.run is not None
        self.total.sent_bytes += bucket.run.sent_bytes + bucket.bucket.extra_sent_bytes
        self.total.dense_bytes += sum(parameter.size * parameter.itemsize for parameter in bucket.members)

    def settle(
        self, buckets: Collection[ParameterBucket], flags: int, flushed: Collection[ParameterBucket] = ()
    ) -> None:
        """Decide the outcome of a step from what all workers' flags say of it, for all its buckets alike.

        What the memories of ``flushed`` buckets held has been sent.
        """
        keep = not flags & (header.NONFINITE | header.DISCARD)
        for bucket in buckets:
            assert bucket.run is not None
            if keep:
                bucket.run.commit()
                self.total.target += bucket.bucket.target
                self.total.selected += bucket.bucket.sent
                if bucket in flushed:
                    bucket.bucket.memory.clear()
                    bucket.bucket.state.clear()  # what a rank adapted to its gradients; now the ranks' states are alike
            else:
                bucket.run.rollback()
            bucket.run = None
            bucket.step += 1
        runtime = self.compressor.runtime
        remembers = any(bucket.bucket.memory.held_back() is not None for bucket in buckets)
        if not remembers or (keep and all(b in flushed for b in buckets if b.bucket.memory.held_back() is not None)):
            runtime.flush_requested = False
        if not remembers or flags & header.DISCARD:
            runtime.discard_requested = False

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

    def state_dict(self, *, layout: bool) -> dict[str, Any]:
        """Return this worker's state (see ``Compressor.state_dict``); arrays are copies, float32, flat. Without
        ``layout`` the buckets are not yet those of the steps to come."""
        buckets = self.buckets
        memory: dict[str, dict[str, Float32]] = {}
        for bucket in buckets:
            arrays = bucket.bucket.memory.arrays()
            for name, part in bucket.parts.items():
                if self._owners[name] is bucket:
                    memory[name] = {key: array[part].copy() for key, array in arrays.items()}
        for name, frozen in self.frozen.items():
            memory[name] = {key: memory[name][key] + array for key, array in frozen.items()}
        shared = self.phases.shared_state()
        return {
            "version": STATE_VERSION,
            "compressor": self.compressor.name,
            "rank": self.rank,
            "workers": self.workers,
            "step": max((bucket.step for bucket in buckets), default=self.saved.step),
            "steps": [bucket.step for bucket in buckets] if layout else [],
            "layout": [list(bucket.parts) for bucket in buckets] if layout else [],
            "memory": {**self.saved.remaining(), **memory},
            "algorithm": {bucket.bucket.name: copy.deepcopy(bucket.bucket.state) for bucket in buckets},
            **({"shared": shared} if shared else {}),
        }

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters of all buckets."""
        for bucket in self.buckets:
            yield from bucket.members

    def _bucket(self, name: str, size: int, memory: Any) -> Bucket:
        return Bucket(
            name=name,
            size=size,
            memory=memory(self._kernels, size),
            kernels=self._kernels,
            rank=self.rank,
            workers=self.workers,
            seed=self.compressor.seed,
        )
