"""The classes of Horovod's elastic states get methods that see to compressors, too, whatever the framework."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from horovod.common.exceptions import HostsUpdatedInterrupt

from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.drivers.leaving import Job


def extend(cls: Any, name: str, extension: Callable[[Any, Callable[[], Any]], Any]) -> None:
    """Have ``extension`` take the place of a method of a class of Horovod's states. It is given the object and what
    calls the method itself."""
    method = getattr(cls, name)
    setattr(cls, name, functools.wraps(method)(lambda self: extension(self, functools.partial(method, self))))


def extend_changes(cls: Any, committed: Callable[[Any], Iterable[CommittedState]], job: Job) -> None:
    """Have the compressors of such a state (``committed``) told when hosts have changed. Known of Horovod 0.28.1.

    Then ``sync`` is called where hosts only go, too, which Horovod would leave out: what is to be taken over is taken
    over there, where a worker that dies ends no others, and all do the same if only some of them could part.
    """

    def check_host_updates(state: Any, check: Callable[[], Any]) -> None:
        try:
            check()
        except HostsUpdatedInterrupt as interrupt:  # in the same step of every worker
            kept = list(committed(state))
            between_steps = [one.part(job) for one in kept]
            if kept and interrupt.skip_sync:
                interrupt.skip_sync = False
                if all(between_steps):
                    state.save()  # sync goes back to what was saved of plain data; without it they would stay
            raise

    extend(cls, "check_host_updates", check_host_updates)
