"""The workers that a worker is among: they change in an elastic job, and whenever Horovod is initialized again."""

from __future__ import annotations

from typing import NamedTuple

from hvd_compress.topology import Topology


class World(NamedTuple):
    """What one worker knows of them."""

    number: int
    """Another one whenever they may have changed; it means nothing to other workers."""
    rank: int
    topology: Topology
    mpi: tuple[int, ...] | None = None
    """As ``Transport.mpi``."""
