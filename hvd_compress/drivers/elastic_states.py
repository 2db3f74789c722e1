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

    Between steps all is saved then: ``sync`` goes back to what was saved of plain data, while weights and memories stay
    what they are. And ``sync`` is called where hosts only go, too, which Horovod would leave out: what is to be taken
    over is taken over there, where a worker that dies ends no others, and all do the same if only some of them could
    part. When it is over all is saved together: Horovod saves some of it or nothing, and a restore would go back to
    weights and memories of different times.
    """

    def check_host_updates(state: Any, check: Callable[[], Any]) -> None:
        try:
            check()
        except HostsUpdatedInterrupt as interrupt:  # in the same step of every worker
            kept = list(committed(state))
            between_steps = [one.part(job) for one in kept]
            if kept:
                interrupt.skip_sync = False
                if all(between_steps):
                    state.save()
            raise

    def sync(state: Any, begin: Callable[[], Any]) -> None:
        begin()
        if list(committed(state)):
            state.save()

    extend(cls, "check_host_updates", check_host_updates)
    extend(cls, "sync", sync)
