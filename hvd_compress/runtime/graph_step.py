"""What a graph's steps are made of: traced buckets, steps, and the traced calls that run them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32, Kernels
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.buckets import ParameterBucket

SPARE_MEANS = 3
"""Buffers for means that a bucket keeps: TensorFlow may hold the last step's while the next is decoded."""


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
    eager: bool = False
    """Whether that tensor's call is made eagerly: the bucket serves it alone, and no other call."""
    world: int = -1
    """The number of the world that ``variant`` and, of one that is standalone, the count of calls are of."""
    variant: str | None = None
    """Which of the variants of its plan the workers follow, as many as they are; None if it has several plans."""

    def buffer(self, kernels: Kernels) -> Float32:
        """Return a buffer for a mean that neither TensorFlow nor the caller has a use for any more. TensorFlow takes
        NumPy's memory over without a copy and keeps the array alive; the count of references says when it is done."""
        for index in range(len(self.means)):
            if sys.getrefcount(self.means[index]) == 2:
                return self.means[index]
        mean = kernels.empty(self.bucket.size)
        if len(self.means) < SPARE_MEANS:
            self.means.append(mean)
        return mean

    @property
    def bucket(self) -> Bucket:
        return self.parameters.bucket

    @property
    def members(self) -> tuple[Parameter, ...]:
        return self.parameters.members


@dataclass(eq=False)
class GraphStep:
    """One step of one traced call: its exchanges share their fate."""

    buckets: Sequence[TracedBucket]
    """Those that have an exchange in it."""
    means: int
    """How many means get a momentum in it."""
    abandoned: Callable[[], bool]
    """Whether the graph that runs the step is not going on with it; if it has come to its end, too."""
    momenta: dict[str, Float32] = field(default_factory=dict)
    """The momenta that the step leaves, by parameter."""
    traced_buckets: list[TracedBucket] = field(default_factory=list)
    """Those of them whose exchanges have begun."""
    flags: int = 0
    settled: bool = False

    @property
    def complete(self) -> bool:
        """Whether every exchange has its last result, and every mean its momentum."""
        landed = len(self.traced_buckets) == len(self.buckets) and all(
            traced.parameters.exchange.landed for traced in self.traced_buckets
        )
        return landed and len(self.momenta) >= self.means

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it: it is complete, or the graph has ended with an error."""
        return self.complete or self.abandoned()


@dataclass(eq=False)
class TracedCall:
    """A place in a program where gradients are reduced together: in these ``buckets``, and ``uncompressed`` bytes of
    them by Horovod itself. So many ``means`` get a momentum afterwards."""

    buckets: Sequence[TracedBucket]
    uncompressed: int = 0
    means: int = 0
    step: GraphStep | None = None
    abandoned: Callable[[], bool] = field(default=lambda: False)
    """As ``GraphStep.abandoned``, of the step that was begun last."""
