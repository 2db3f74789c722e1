"""What a state of ``hvd.elastic`` keeps of a compressor, under any framework: commit, restore and sync."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.leaving import Job, Parting, norm, part, take_over

_log = logging.getLogger(__name__)


class CommittedState:
    """The state of one compressor at the last commit."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._state: dict[str, Any] = {}
        self._workers = 0
        """Among so many this one has trained; 0 for none yet."""
        self._parting: Parting | None = None
        self.save()

    def save(self) -> None:
        """Commit: keep a copy of the state of now."""
        self._state = self._compressor.state_dict()

    def restore(self) -> None:
        """Go back to the last commit, bit for bit: memories, the algorithm's state, the count of steps."""
        self._parting = None  # what was held back then is not what there is now
        self._go_on_from(copy.deepcopy(self._state) if _begun(self._state) else None)

    def sync(self, job: Job) -> None:
        """Begin together, and commit: a worker that has not trained yet takes over what rank 0 has, with an empty
        memory. The others keep their memories, and what workers held that have left is taken over; before their next
        step they agree on all else."""
        mine = self._compressor.state_dict()
        shapes = {name: {key: len(array) for key, array in held.items()} for name, held in mine["memory"].items()}
        progress = {key: value for key, value in mine.items() if key != "memory"}
        told, sizes, parted, before = job.broadcast((progress, shapes, _summary(self._parting), self._workers))
        if _begun(told) and job.rank() and self._compressor.runtime.driver is None:
            memory = {n: {key: np.zeros(size, np.float32) for key, size in of.items()} for n, of in sizes.items()}
            joined = {**told, "rank": job.rank(), "workers": job.size(), "memory": memory}
            self._compressor.runtime.pending_state = joined
        if parted is not None:
            self._take_over(parted, job)
        else:
            self._tell_of_loss(before, job)
        self._workers = job.size()
        self.save()

    def part(self, job: Job) -> None:
        """Before Horovod is shut down because hosts have changed: keep what is needed to take over what those hold back
        that leave. All workers call it."""
        self._parting = part(self._compressor, job)

    def meet(self, job: Job) -> None:
        """After that, where no worker has joined and so ``sync`` is not called: take it over."""
        if self._parting is not None:
            self._take_over(_summary(self._parting), job)
        self._workers = job.size()

    def _take_over(self, parted: tuple[str, int, int] | None, job: Job) -> None:
        assert parted is not None
        state = self._compressor.state_dict()
        before = copy.deepcopy(state["memory"])
        if take_over(self._parting, parted, state, job):
            self._go_on_from(state)
            for name, arrays in self._state["memory"].items():  # for a restore
                for key, array in arrays.items():
                    np.asarray(array)[:] += np.asarray(state["memory"][name][key]) - np.asarray(before[name][key])
        self._parting = None

    def _tell_of_loss(self, before: int, job: Job) -> None:
        """Say that workers are gone without having parted; rank 0 has been among ``before`` workers."""
        gone = before - sum(job.gather(self._workers > 0))
        if gone > 0 and job.rank() == 0 and (held := norm(self._compressor.state_dict())):
            _log.warning(
                "%d of %d workers are gone, and what they held back is lost; what this one holds back has norm %.3g",
                gone,
                before,
                held,
            )

    def _go_on_from(self, state: dict[str, Any] | None) -> None:
        runtime = self._compressor.runtime
        runtime.survivor = True
        if runtime.driver is None:
            runtime.pending_state = state
        else:
            runtime.driver.restore(state)


def _begun(state: dict[str, Any]) -> bool:
    """Whether a state is of a compressor that has seen a step."""
    return bool(state["step"] or state["layout"])


def _summary(parting: Parting | None) -> tuple[str, int, int] | None:
    """Return what ``take_over`` expects of rank 0's parting."""
    return None if parting is None else (parting.token, parting.workers, len(parting.total))
