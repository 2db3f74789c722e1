"""What a step needs of whoever carries its collectives among the workers."""

from __future__ import annotations

from typing import Any, Protocol

from hvd_compress.exchange import AllGather, Array, Collective, ReduceScatter, sent_array
from hvd_compress.topology import Topology

Handle = Any
"""A started collective, as its transport knows it."""


class Transport(Protocol):
    """Carries collectives among ``workers`` workers; all of them start the same ones under the same names."""

    rank: int
    workers: int
    topology: Topology
    """Which workers share a node, as far as the compressor asks: whom collectives of a scope are among."""
    simulated: bool
    """Whether all workers are in this process."""
    mpi: tuple[int, ...] | None
    """The workers' ranks in MPI's ``COMM_WORLD``, if the job runs over MPI and may call it from several threads."""

    def start(self, collective: Collective, name: str) -> Handle:
        """Start without blocking. The arrays stay untouched by the caller until the result is there."""
        ...

    def done(self, handle: Handle) -> bool:
        """Return whether ``result`` would not block."""
        ...

    def wait(self, handle: Handle) -> None:
        """Block until done. Raise if the collective failed; it fails everywhere."""
        ...

    def result(self, handle: Handle) -> Array:
        """Return the result of a collective that is done (see the collective's class); it may be asked for once."""
        ...


def result_alone(collective: Collective) -> Array:
    """Return the result of a collective that is among one worker."""
    sent = sent_array(collective)
    if isinstance(collective, AllGather):
        return sent[None]
    return sent[0] if isinstance(collective, ReduceScatter) else sent


def shaped(collective: Collective, result: Array, members: int) -> Array:
    """Return what a framework made of a collective among so many ``members``, in the shape that the exchange expects.

    An all-gather whose payloads are of different sizes stays flat, which the exchange reports.
    """
    sent = sent_array(collective)
    if isinstance(collective, AllGather):
        return result.reshape(members, -1) if result.size == members * sent.size else result
    return result.reshape(-1) if isinstance(collective, ReduceScatter) else result.reshape(sent.shape)


def mpi_ranks(horovod: Any, process_set: Any) -> tuple[int, ...] | None:
    """Return ``Transport.mpi`` of a process set of Horovod, whose module for a framework is handed over."""
    if not (horovod.mpi_built() and horovod.mpi_enabled() and horovod.mpi_threads_supported()):
        return None
    return tuple(process_set.ranks)
