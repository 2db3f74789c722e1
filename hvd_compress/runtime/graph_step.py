"""What a graph's steps are made of: slots (a bucket's place in the graph), turns (a step of a call), calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32
from hvd_compress.runtime.agreement import Parameter
from hvd_compress.runtime.exchange_run import ExchangeRun


@dataclass(eq=False)
class Slot:
    """A bucket, and its exchange of this step."""

    bucket: Bucket
    members: tuple[Parameter, ...]
    step: int = 0
    turn: GraphStep | None = None
    flight: ExchangeRun | None = None
    before: dict[str, Any] = field(default_factory=dict)
    flushed: bool = False
    means: list[Float32] = field(default_factory=list)


@dataclass(eq=False)
class GraphStep:
    """One step of one call: its exchanges share their fate."""

    slots: list[Slot] = field(default_factory=list)
    flags: int = 0
    settled: bool = False


@dataclass(eq=False)
class TracedCall:
    """A place in a program where gradients are reduced together; ``uncompressed`` bytes of them by Horovod itself."""

    uncompressed: int = 0
    turn: GraphStep | None = None
