"""What a state of ``hvd.elastic`` keeps of a compressor, under any framework: commit, restore and sync."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.leaving import Job, Parting, all_parted, hold_back, part, taken_over
from hvd_compress.runtime.losses import loss_of, tell_of_loss

_log = logging.getLogger(__name__)


class CommittedState:
    """The state of one compressor at the last commit."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._state: dict[str, Any] = {}
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
        """Begin together: a worker that has not trained yet takes over what rank 0 has, with an empty memory. The
        others keep their memories, and what workers held that have left is taken over, at the last commit too; before
        their next step they agree on all else. ``save`` follows when weights and all else have begun together, too."""
        mine = self._compressor.state_dict()
        shapes = {name: {key: len(array) for key, array in held.items()} for name, held in mine["memory"].items()}
        progress = {key: value for key, value in mine.items() if key != "memory"}
        told, sizes = job.broadcast((progress, shapes))
        if _begun(told) and job.rank() and self._compressor.runtime.driver is None:
            memory = {n: {key: np.zeros(size, np.float32) for key, size in of.items()} for n, of in sizes.items()}
            joined = {**told, "rank": job.rank(), "workers": job.size(), "memory": memory}
            self._compressor.runtime.pending_state = joined
        met = job.gather(
            (self._compressor.runtime.trained_among, None if self._parting is None else self._parting.told())
        )
        if parted := all_parted(met):
            state = self._compressor.state_dict()
            missing = taken_over(self._parting, [bool(workers) for workers, _ in met], parted, state, job)
            if missing is not None:
                self._go_on_from(hold_back(state, missing))
                if _begun(self._state):
                    hold_back(self._state, missing)
        elif (loss := loss_of([workers for workers, _ in met])) and loss.teller == job.rank():
            tell_of_loss(loss, self._compressor.state_dict()["memory"])
        self._parting = None
        self._compressor.runtime.trained_among = job.size()

    def part(self, job: Job) -> bool:
        """Before Horovod is shut down because hosts have changed: keep what is needed to take over what those hold back
        that leave. All workers call it, and then ``sync``, or ``restore`` first if it has failed.

        Returns:
            Whether this worker is between steps, and can be saved.
        """
        self._compressor.runtime.trained_among = job.size()  # so that whoever goes back from here on is no new worker
        try:
            state = self._compressor.state_dict()
        except RuntimeError:  # hosts are looked for in the middle of a step
            state = None
            if self._compressor.error_feedback and job.size() > 1:
                _log.warning(
                    "hosts have changed in the middle of a step, when what workers hold back cannot be handed over: if "
                    "this one leaves, it is lost"
                )
        self._parting = part(state, job)
        return state is not None

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
