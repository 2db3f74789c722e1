"""Which initialization of Horovod this process is in: one look for every framework, and for elastic jobs and others.

Horovod does not say that it was initialized anew. But ``hvd.init`` of every framework compares the ranks of the global
process set with those that it has found, and keeps the old list only if the two are equal. So a list that says that it
equals none shows, by being gone, that ``hvd.init`` was called (known of Horovod 0.28.1).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

from horovod.common.basics import HorovodBasics
from horovod.common.process_sets import global_process_set

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.wrapping import wrap_once
from hvd_compress.phased import phases


class _Seen(list[int]):
    """The global process set's ranks, which ``hvd.init`` is to replace."""

    def __ne__(self, other: object) -> bool:
        return True


_lock = threading.Lock()
_number = 0


def initialization() -> int:
    """Return a number that is another one after every ``hvd.init``, and means nothing to other processes."""
    global _number
    if type(global_process_set.ranks) is not _Seen:
        with _lock:
            if type(global_process_set.ranks) is not _Seen:
                _number += 1
                global_process_set.ranks = _Seen(global_process_set.ranks)
    return _number


def is_elastic() -> bool:
    """Whether the number of ranks may change: TensorFlow's operations are laid out for any. Known of 0.28.1."""
    return bool(int(os.environ.get("HOROVOD_ELASTIC", "0")))


def check_elastic(compressor: Compressor) -> None:
    """Raise NotImplementedError if the workers may change and the compressor cannot go on among others."""
    if is_elastic() and phases(compressor).may_be_plain:
        raise NotImplementedError(
            f"{compressor!r} cannot be used in an elastic job: in the steps that it leaves to Horovod it does not see "
            "that the workers have changed; use one of its candidates"
        )


def guard_initialization() -> None:
    """Have every ``hvd.init`` raise RuntimeError where MPI would end the process: after it was finalized.

    ``hvd.shutdown`` does that, unless somebody else had initialized MPI before Horovod (known of Horovod 0.28.1).
    """

    def make(init: Callable[..., Any]) -> Callable[..., Any]:
        def checked(basics: Any, *arguments: Any, **keywords: Any) -> Any:
            if _uses_mpi(basics) and _mpi_is_finalized(basics):
                raise RuntimeError(
                    "hvd.init() cannot be called again in this process: hvd.shutdown() has finalized MPI, which cannot "
                    "begin anew. Start the job over Gloo (horovodrun --gloo), or write `from mpi4py import MPI` before "
                    "the first hvd.init(): Horovod leaves MPI running then"
                )
            return init(basics, *arguments, **keywords)

        return checked

    wrap_once(HorovodBasics, "init", make)


def _uses_mpi(basics: HorovodBasics) -> bool:
    """Whether Horovod is going to use MPI: it goes on to if it ever has, and begins to if it is told to. Known of
    0.28.1."""
    asked = (os.environ.get(name, "").lower() for name in ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS"))
    return basics.mpi_enabled() or "mpi" in asked


def _mpi_is_finalized(basics: HorovodBasics) -> bool:
    finalized, library = ctypes.c_int(), basics.MPI_LIB_CTYPES
    return hasattr(library, "MPI_Finalized") and not library.MPI_Finalized(ctypes.byref(finalized)) and bool(finalized)
