"""What ``hvd.init`` does when MPI has been finalized, with a library that only says so."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("horovod")

from horovod.common.basics import HorovodBasics

from hvd_compress.drivers.initialization import guard_initialization


def basics(finalized: int | None) -> Any:
    """Horovod over a library that was built without MPI, or with one that is finalized or not."""

    def is_finalized(flag: Any) -> int:
        ctypes.cast(flag, ctypes.POINTER(ctypes.c_int))[0] = finalized
        return 0

    functions = {} if finalized is None else {"MPI_Finalized": is_finalized}
    return SimpleNamespace(MPI_LIB_CTYPES=SimpleNamespace(**functions))


def test_what_is_finalized_cannot_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    initialized: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HorovodBasics, "init", lambda _basics, *arguments, **_keywords: initialized.append(arguments))
    for _ in range(2):
        guard_initialization()
    for finalized in (None, 0):
        HorovodBasics.init(basics(finalized), [0], process_sets=None)
    assert initialized == [([0],), ([0],)]
    with pytest.raises(RuntimeError, match="from mpi4py import MPI"):
        HorovodBasics.init(basics(1))
    assert len(initialized) == 2
