"""``hvd.join()`` of a Horovod that only counts."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import pytest

from hvd_compress import Dense, TopK
from hvd_compress.drivers.joining import JoinRefused, guard_join


def horovod() -> tuple[Any, list[int]]:
    """Return a framework's Horovod whose ``join`` somebody has wrapped, and what ``join`` was called with."""
    joined: list[int] = []
    module: Any = ModuleType("a.framework")
    module.size = lambda: 2
    module.join = functools.wraps(joined.append)(lambda device: joined.append(device))
    return module, joined


def test_somebody_else_has_wrapped_it() -> None:
    module, joined = horovod()
    asked: list[TopK] = []
    compressor = TopK()

    def refuse(one: TopK) -> bool:
        asked.append(one)
        return len(asked) > 1

    for _ in range(2):
        guard_join(module, compressor, refuse)  # type: ignore[arg-type]
    module.join(3)
    assert (joined, asked) == ([3], [compressor])
    with pytest.raises(JoinRefused, match="TopK"):
        module.join(3)
    assert joined == [3]


def test_a_compressor_that_only_sums_does_not_mind() -> None:
    module, joined = horovod()
    join = module.join
    guard_join(module, Dense(), lambda _: True)
    assert module.join is join
    module.join(3)
    assert joined == [3]
