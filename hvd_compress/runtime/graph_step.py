"""What a graph's steps are made of: traced buckets, steps, and the traced calls that run them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.core import ParameterBucket
from hvd_compress.runtime.exchange_run import ExchangeRun


@dataclass(eq=False)
class TracedBucket:
    """A bucket's place in a graph, and what it is doing in this step."""

    parameters: ParameterBucket
    step: GraphStep | None = None
    flushed: bool = False
    means: list[Float32] = field(default_factory=list)
    rivals: list[TracedBucket] = field(default_factory=list)
    """Buckets of calls with another set of parameters, which share some with this one."""
    standalone: bool = False
    """Whether it is a tensor's outside any optimizer, which has no memory and no step."""
    world: int = -1
    """The number of the world that ``variant`` and, of one that is standalone, the count of calls are of."""
    variant: str = ""
    """Which of the variants of its plan the workers follow, as many as they are."""

    @property
    def bucket(self) -> Bucket:
        return self.parameters.bucket

    @property
    def members(self) -> tuple[Parameter, ...]:
        return self.parameters.members


@dataclass(eq=False)
class GraphStep:
    """One step of one traced call: its exchanges share their fate."""

    buckets: int
    """How many exchanges it has."""
    means: int
    """How many means get a momentum in it."""
    momenta: dict[str, Float32] = field(default_factory=dict)
    """The momenta that the step leaves, by parameter."""
    traced_buckets: list[TracedBucket] = field(default_factory=list)
    flags: int = 0
    settled: bool = False

    @property
    def complete(self) -> bool:
        """Whether every exchange has its last result, and every mean its momentum."""
        landed = len(self.traced_buckets) == self.buckets and all(
            running(traced).landed for traced in self.traced_buckets
        )
        return landed and len(self.momenta) >= self.means


@dataclass(eq=False)
class TracedCall:
    """A place in a program where gradients are reduced together: in so many ``buckets``, and ``uncompressed`` bytes of
    them by Horovod itself. So many ``means`` get a momentum afterwards."""

    buckets: int
    uncompressed: int = 0
    means: int = 0
    step: GraphStep | None = None


def running(traced: TracedBucket) -> ExchangeRun:
    """Return a bucket's exchange, which must be under way."""
    assert traced.parameters.run is not None, f"no exchange of {traced.members[0].name!r} is under way"
    return traced.parameters.run
