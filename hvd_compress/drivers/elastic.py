"""What a state of ``hvd.elastic`` keeps of a compressor, under any framework: commit, restore and sync."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from hvd_compress.compressor import Compressor


class CommittedState:
    """The state of one compressor at the last commit."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._state: dict[str, Any] = {}
        self.save()

    def save(self) -> None:
        """Commit: keep a copy of the state of now."""
        self._state = self._compressor.state_dict()

    def restore(self) -> None:
        """Go back to the last commit, bit for bit: memories, the algorithm's state, the count of steps."""
        runtime = self._compressor.runtime
        runtime.survivor = True
        state = copy.deepcopy(self._state) if _begun(self._state) else None
        if runtime.driver is None:
            runtime.pending_state = state
        else:
            runtime.driver.restore(state)

    def sync(self, rank: int, workers: int, broadcast: Callable[[Any], Any]) -> None:
        """Begin together, and commit: a worker that has not trained yet takes over what rank 0 has, with an empty
        memory. The others keep their memories; before their next step they agree on all else.

        ``broadcast`` returns what rank 0 gives it.
        """
        mine = self._compressor.state_dict()
        shapes = {name: {key: len(array) for key, array in held.items()} for name, held in mine["memory"].items()}
        told, sizes = broadcast(({key: value for key, value in mine.items() if key != "memory"}, shapes))
        if _begun(told) and rank and self._compressor.runtime.driver is None:
            memory = {n: {key: np.zeros(size, np.float32) for key, size in of.items()} for n, of in sizes.items()}
            joined = {**told, "rank": rank, "workers": workers, "memory": memory}
            self._compressor.runtime.pending_state = joined
        self.save()


def _begun(state: dict[str, Any]) -> bool:
    """Whether a state is of a compressor that has seen a step."""
    return bool(state["step"] or state["layout"])
