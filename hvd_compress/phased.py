"""Compressors whose steps are not all alike: a bucket follows one of several plans, another one as training goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from hvd_compress.compressor import Collectives, Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, Bucket
from hvd_compress.topology import Topology


class MPIJob(NamedTuple):
    """A job over MPI, initialized for several threads."""

    ranks: tuple[int, ...]
    """The workers' ranks in ``COMM_WORLD``."""
    label: str
    """What tells this compressor's messages from another's, the same on every rank."""


class Preparation(NamedTuple):
    """What is known before the first step: the same on every rank, but for ``rank``."""

    parameters: Mapping[str, int]
    """The names of all weights in the model's order; and their element counts, 0 for those that are left to Horovod."""
    rank: int
    workers: int
    simulated: bool
    mpi: MPIJob | None = None
    """None: it does not run over MPI, or MPI does not allow calls from several threads."""
    topology: Topology | None = None
    """Which workers share a node; as in ``Bucket.topology``."""


class Phases:
    """What the runtime asks of every compressor besides its exchange, by way of ``phases``."""

    reduce_dtypes: ClassVar[Mapping[str, str]] = {}
    """The dtype of what a plan all-reduces, by the plan's name."""

    rank_local: ClassVar[Collection[str]] = ()
    """Parameters that are each rank's own business: paths, say, of what ``fingerprint`` compares by its content."""

    asks_for_nodes: ClassVar[bool] = False
    """Whether ``topology`` depends on which workers share a node."""

    def topology(self, workers: int, found: Callable[[], Topology]) -> Topology:
        """Return which of so many workers share a node, the same on every worker; ``found`` returns what the launcher
        says of it. Collectives of a scope other than all need to know: a compressor without them does not ask."""
        return Topology.single(workers)

    def prepare(self, work: Preparation) -> dict[str, str]:
        """Return a kind for every parameter; a bucket has parameters of one kind (``Bucket.kind``). None: all alike.

        It is called before the first step, and under TensorFlow for every call of Horovod's that is traced.

        Raises:
            OSError, ValueError: it cannot work like this; every rank is told.
        """
        return {}

    @property
    def steady(self) -> bool:
        """Whether all steps of a bucket are alike, so that one tells what the others cost."""
        return False

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        """Return what the steps of a bucket may look like: the collectives of each plan, by its name."""
        raise NotImplementedError(f"{type(self).__name__} does not define plans")

    def plan(self, bucket: Bucket) -> str:
        """Return which of its ``plans`` a bucket follows in the step that begins: the same one on every rank."""
        raise NotImplementedError(f"{type(self).__name__} does not define plan")

    def tells(self, plan: str, collectives: Collectives) -> bool:
        """Return whether the workers tell each other, in a step of this plan, of a gradient that is not finite."""
        return AllGather in collectives

    def on_agreement(self, step: int) -> None:
        """Do what all ranks must do at about the same time.

        It is called once on every rank, in the first ``step`` that it runs, after all have been found to have the same
        configuration, parameters and state, and before they go on.
        """

    @property
    def may_be_plain(self) -> bool:
        """Whether there may be ``plain_steps``."""
        return False

    def plain_steps(self, step: int) -> int:
        """Return for how many steps, from this one on, Horovod may reduce all gradients itself: the same on every rank.

        A driver that can leave gradients to Horovod asks this before a step; after such steps ``step_done`` is called,
        but neither ``plan`` nor ``exchange``.
        """
        return 0

    def step_done(self, step: int, count: int = 1) -> None:
        """Take note that this worker has done all of a step that it waits for, and of those before it, ``count`` in all
        since it was called last; at the same point of every step."""

    def shared_state(self) -> dict[str, Any]:
        """Return the state that belongs to no bucket, as plain data, for ``state_dict``."""
        return {}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Take over what ``shared_state`` returned, after ``prepare``. Raise TypeError or ValueError if that cannot
        be."""
        if state:
            raise ValueError(f"it has a shared state, which this compressor does not keep: {', '.join(state)}")

    def restored(self) -> str:
        """Return what must be the same on all ranks of what ``load_shared_state`` took over."""
        return ""

    def follow(self, state: dict[str, Any], step: int) -> None:
        """Go on from what one worker's ``shared_state`` returned, for the workers have changed.

        It is called on every rank after ``prepare``, on that worker's too, before ``step`` is begun.
        """
        if state:
            self.load_shared_state(state)


class SinglePlan(Phases):
    """The answers of a compressor whose steps are all alike: its one plan is its schedule."""

    def __init__(self, compressor: Compressor) -> None:
        self._schedule = compressor.schedule
        self._signals = compressor.signals

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        return {"": self._schedule}

    def plan(self, bucket: Bucket) -> str:
        return ""

    def tells(self, plan: str, collectives: Collectives) -> bool:
        return self._signals or super().tells(plan, collectives)


@compressor_dataclass
class PhasedCompressor(Phases, Compressor):
    """Base of compressors with several plans: a subclass defines ``plans`` and ``plan`` besides ``exchange``.

    ``schedule`` is then the plan of the first step; ``bucket.plan`` says which one ``exchange`` has to follow. Beside
    another base this one comes last, ``class Mine(Selective, PhasedCompressor)``, for the other's fields to count.
    """


def phases(compressor: Compressor) -> Phases:
    """Return what answers the runtime's questions about ``compressor``: itself, if it has several plans."""
    return compressor if isinstance(compressor, PhasedCompressor) else SinglePlan(compressor)
