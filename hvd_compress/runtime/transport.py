"""What a step needs of whoever carries its collectives among the workers."""

from __future__ import annotations

from typing import Any, Protocol

from hvd_compress.exchange import Array, Collective

Handle = Any
"""A started collective, as its transport knows it."""


class Transport(Protocol):
    """Carries collectives among ``workers`` workers; all of them start the same ones under the same names."""

    rank: int
    workers: int
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


def mpi_ranks(horovod: Any, process_set: Any) -> tuple[int, ...] | None:
    """Return ``Transport.mpi`` of a process set of Horovod, whose module for a framework is handed over."""
    if not (horovod.mpi_built() and horovod.mpi_enabled() and horovod.mpi_threads_supported()):
        return None
    return tuple(process_set.ranks)
