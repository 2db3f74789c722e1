"""The classes of Horovod's elastic states get methods that see to compressors, too, whatever the framework."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from horovod.common.exceptions import HostsUpdatedInterrupt

from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.drivers.leaving import Job

_MEETING = "_hvd_compress_meeting"
"""The attribute of a state that says whether its workers meet again without a ``sync``."""


def extend(cls: Any, name: str, extension: Callable[[Any, Callable[[], Any]], Any]) -> None:
    """Have ``extension`` take the place of a method of a class of Horovod's states. It is given the object and what
    calls the method itself."""
    method = getattr(cls, name)
    setattr(cls, name, functools.wraps(method)(lambda self: extension(self, functools.partial(method, self))))


def extend_changes(cls: Any, committed: Callable[[Any], Iterable[CommittedState]], job: Job) -> None:
    """Have the compressors of such a state (``committed``) told when hosts have changed, and when the workers have met
    again. Known of Horovod 0.28.1."""

    def check_host_updates(state: Any, check: Callable[[], Any]) -> None:
        try:
            check()
        except HostsUpdatedInterrupt as interrupt:  # in the same step of every worker
            for one in committed(state):
                one.part(job)
            setattr(state, _MEETING, interrupt.skip_sync)
            raise

    def on_reset(state: Any, reset: Callable[[], Any]) -> None:
        if getattr(state, _MEETING, False):
            for one in committed(state):
                one.meet(job)
        setattr(state, _MEETING, False)
        reset()

    extend(cls, "check_host_updates", check_host_updates)
    extend(cls, "on_reset", on_reset)
