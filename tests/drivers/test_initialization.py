"""What ``hvd.init`` does when MPI has been finalized, with a library that only says so."""

from __future__ import annotations

import ctypes
import functools
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("horovod")

from horovod.common.basics import HorovodBasics

from hvd_compress.drivers.initialization import guard_initialization

VARIABLES = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS")


def basics(finalized: int | None, *, enabled: bool = True) -> Any:
    """Horovod over a library that was built without MPI, or with one that is finalized or not; whether it has ever used
    it."""

    def is_finalized(flag: Any) -> int:
        ctypes.cast(flag, ctypes.POINTER(ctypes.c_int))[0] = finalized
        return 0

    functions = {} if finalized is None else {"MPI_Finalized": is_finalized}
    return SimpleNamespace(MPI_LIB_CTYPES=SimpleNamespace(**functions), mpi_enabled=lambda: enabled)


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments with which Horovod was initialized."""
    initialized: list[tuple[Any, ...]] = []
    monkeypatch.setattr(HorovodBasics, "init", lambda _basics, *arguments, **_keywords: initialized.append(arguments))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return initialized


def test_what_is_finalized_cannot_begin_anew(initialized: list[tuple[Any, ...]]) -> None:
    for _ in range(2):
        guard_initialization()
    for finalized in (None, 0):
        HorovodBasics.init(basics(finalized), [0], process_sets=None)
    assert initialized == [([0],), ([0],)]
    with pytest.raises(RuntimeError, match="from mpi4py import MPI"):
        HorovodBasics.init(basics(1))
    assert len(initialized) == 2


def test_over_gloo_it_does_not_matter_that_mpi_is_finalized(
    initialized: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_initialization()
    HorovodBasics.init(basics(1, enabled=False))
    for name in VARIABLES:
        monkeypatch.setenv(name, "gloo")
    HorovodBasics.init(basics(1, enabled=False))
    assert len(initialized) == 2
    for name in VARIABLES:  # it begins to use MPI, for one of these purposes
        with monkeypatch.context() as patch:
            patch.setenv(name, "MPI")
            with pytest.raises(RuntimeError, match="finalized MPI"):
                HorovodBasics.init(basics(1, enabled=False))
    assert len(initialized) == 2


def test_somebody_else_has_wrapped_it(initialized: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and afterwards; MPI is asked once all the same."""
    asked: list[int] = []

    def wrap() -> None:
        init = HorovodBasics.init
        wrapper = functools.wraps(init)(lambda *arguments, **keywords: init(*arguments, **keywords))
        monkeypatch.setattr(HorovodBasics, "init", wrapper)

    wrap()
    guard_initialization()
    wrap()
    guard_initialization()
    running = basics(0)
    running.mpi_enabled = lambda: asked.append(1) or True
    HorovodBasics.init(running)
    assert len(initialized) == len(asked) == 1
    with pytest.raises(RuntimeError, match="finalized MPI"):
        HorovodBasics.init(basics(1))
