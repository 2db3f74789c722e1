"""What ranks may do wrong in a scenario, while the others wait for them."""

from __future__ import annotations

import os
import time


def fail() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        raise RuntimeError("as intended")
    MPI.COMM_WORLD.barrier()


def die() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        os._exit(3)
    MPI.COMM_WORLD.barrier()


def hang() -> None:
    time.sleep(1000)


def fine() -> None:
    """Nothing is wrong."""
