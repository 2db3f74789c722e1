"""What a rank does before the first scenario over MPI alone, and after each."""

from __future__ import annotations

import gc


def begin() -> tuple[int, int]:
    """Return the rank and the number of ranks."""
    from mpi4py import MPI  # which starts it

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def clear() -> None:
    gc.collect()
