"""Jobs that go on with more or fewer workers than they had.

In an elastic job, ``hvd.elastic.TorchState(..., compression=c)`` and ``TensorFlowKerasState(..., compression=c)`` are
all that is needed. A job that ends and is resumed with another number of ranks goes on from what ``redistribute`` makes
of the states that were saved.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from hvd_compress.state_format import MEAN_MOMENTUM, check_state, seal
from hvd_compress.validation import require_int

MOST_WORKERS = 2**20
_ALIKE = ("compressor", "step", "steps", "layout", "loss_scale", "rates", "flushed")


def redistribute(states: Sequence[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """Return the states with which ``workers`` ranks go on from where as many ranks as there are ``states`` stopped.

    Nothing that was held back is lost: the sum of all memories stays what it is, but for the rounding of float32 where
    there are fewer ranks than before. Rank r goes on with what ranks r, r + workers, r + 2 workers and so on held back,
    and with its own of the algorithm's state; ranks that there were not begin with an empty memory, and with rank 0's
    of the algorithm's.

    Args:
        states: what ``state_dict`` returned on every rank, in the order of the ranks. They are not changed.
        workers: the number of ranks to come.

    Raises:
        TypeError: something is not a state, or ``workers`` no number.
        ValueError: the states are not those of all ranks of one job after one step, or ``workers`` is below 1.
    """
    require_int("workers", workers, 1, MOST_WORKERS)
    _check(states)
    count = len(states)
    result = []
    for rank in range(workers):
        state = copy.deepcopy(states[rank if rank < count else 0])
        for name, arrays in state["memory"].items():
            held = [states[source]["memory"][name] for source in range(rank, count, workers)]
            for key, array in arrays.items():
                if key != MEAN_MOMENTUM:  # which is the same on all ranks
                    arrays[key] = reduce(add, [of[key] for of in held]) if held else array - array
        result.append(seal({**state, "rank": rank, "workers": workers}))
    return result


def _sizes(state: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the sizes of what is held back of every parameter."""
    return {name: {key: len(array) for key, array in arrays.items()} for name, arrays in state["memory"].items()}


def _check(states: Sequence[dict[str, Any]]) -> None:
    """Raise unless these are the states of all ranks of one job after one step."""
    if not states:
        raise ValueError("there is no state to redistribute: give those of all ranks")
    for state in states:
        name = state.get("compressor") if isinstance(state, dict) else None
        check_state(name if isinstance(name, str) else "", state)
    first = states[0]
    for rank, state in enumerate(states):
        if (state["rank"], state["workers"]) != (rank, len(states)):
            raise ValueError(
                f"state {rank} of {len(states)} is rank {state['rank']}'s of {state['workers']}: give those of all "
                "ranks of one job, in their order"
            )
        for key in _ALIKE:
            if state.get(key) != first.get(key):
                raise ValueError(
                    f"the states of ranks 0 and {rank} differ in {key!r} ({first.get(key)!r:.80} and "
                    f"{state.get(key)!r:.80}): give those that were saved after the same step"
                )
        if _sizes(state) != _sizes(first):
            raise ValueError(f"the states of ranks 0 and {rank} are of different parameters, or of different sizes")
