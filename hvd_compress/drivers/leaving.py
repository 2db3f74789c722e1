"""What workers held back that leave in an orderly way: one of those that stay takes it over.

Horovod tells workers that hosts have changed, but not which of them goes: that shows when those that stay have met
again. So all add up what they hold back before they part, and those that have met add up what they hold: the difference
is what the others held.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.kernels import Float32
from hvd_compress.state_format import MEAN_MOMENTUM

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The workers that there are at the moment, as a framework's Horovod reaches them. All call the same of these, in
    the same order."""

    rank: Callable[[], int]
    size: Callable[[], int]
    broadcast: Callable[[Any], Any]
    """Return what rank 0 gives it."""
    gather: Callable[[Any], list[Any]]
    """Return what all ranks give it, in their order."""
    total: Callable[[Float32], Float32]
    """Return the sum of all ranks' arrays, float32, flat, of the same size."""


@dataclass(frozen=True)
class Parting:
    """What all workers together held back when they parted."""

    token: str
    """The same on all of them, and another one every time."""
    workers: int
    total: Float32

    def told(self) -> Parted:
        """Return what tells it from others."""
        return Parted(self.token, self.workers, len(self.total))


class Parted(NamedTuple):
    """What workers that meet again tell each other of their parting."""

    token: str
    workers: int
    elements: int


def part(state: dict[str, Any] | None, job: Job) -> Parting | None:
    """Return what all workers hold back, before some of them leave; None if nothing is, or some cannot say what. All
    workers call it.

    Args:
        state: this worker's; None in the middle of a step, when there is none to be had.
        job: the workers that there are.
    """
    if job.size() == 1:
        return None  # which stays
    arrays = {} if state is None else _held(state)
    sizes = None if state is None else {key: len(array) for key, array in arrays.items()}
    told = job.gather((uuid.uuid4().hex, sizes))
    if all(theirs == sizes for _, theirs in told):
        return Parting(told[0][0], job.size(), job.total(_flat(arrays))) if arrays else None
    if arrays:
        _log.warning(
            "hosts have changed, and not all workers can say that they hold gradients back, of the same parameters: if "
            "this one leaves, what it holds (norm %.3g) is lost",
            np.linalg.norm(_flat(arrays)),
        )
    return None


def all_parted(told: Iterable[tuple[int, Parted | None]]) -> Parted | None:
    """Return the parting of those that have met again, if it is one, and all have it that have trained; else None.

    A worker without it, whose all-reduce has failed when others' had not, keeps what it holds: it has not left, and
    nobody can tell what those held that have.

    Args:
        told: of every worker, among how many it has trained (0: it is new), and its parting.
    """
    partings = {parted for workers, parted in told if workers}
    return partings.pop() if len(partings) == 1 else None


def taken_over(
    parting: Parting | None, met: Sequence[bool], parted: Parted, state: dict[str, Any], job: Job
) -> Float32 | None:
    """Return what the others held, if this is the first of those that have met again, who takes it over, for
    ``hold_back``; else None. All that are there now call it.

    Args:
        parting: this worker's.
        met: of every worker, whether it has parted, and so is not new.
        parted: what ``all_parted`` has returned.
        state: this worker's.
        job: the workers that there are now.
    """
    left = parted.workers - sum(met)
    if not left:
        return None
    there = job.total(np.zeros(parted.elements, np.float32) if parting is None else _flat(_held(state)))
    if parting is None or job.rank() != met.index(True):
        return None
    missing: Float32 = parting.total - there
    _log.warning(
        "%d of %d workers have left; what they held back (norm %.3g) is held back here from now on",
        left,
        parted.workers,
        np.linalg.norm(missing),
    )
    return missing


def hold_back(state: dict[str, Any], more: Float32) -> dict[str, Any]:
    """Add what ``taken_over`` returned to the memory of a state of the same parameters, in place; return the state."""
    begin = 0
    for array in _held(state).values():
        array += more[begin : begin + len(array)]
        begin += len(array)
    return state


def _held(state: dict[str, Any]) -> dict[tuple[str, str], Float32]:
    """Return what a state holds back, in an order that is the same on all ranks; not copied."""
    return {
        (name, key): np.asarray(state["memory"][name][key])
        for name in sorted(state["memory"])
        for key in sorted(state["memory"][name])
        if key != MEAN_MOMENTUM  # which is the same on all ranks
    }


def _flat(arrays: dict[tuple[str, str], Float32]) -> Float32:
    return np.concatenate([*arrays.values(), np.zeros(0, np.float32)])
