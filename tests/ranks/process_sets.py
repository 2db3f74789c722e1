"""Process sets for scenarios: those of one job share its ranks, and Horovod refuses a set that is there already."""

from functools import cache
from typing import Any

from horovod.common import process_sets
from horovod.common.process_sets import ProcessSet, add_process_set


@cache
def process_set(*ranks: int) -> Any:
    """Return the process set of these ranks, added once and never removed; all ranks of the job call it.

    A compressor that asks for nodes may have added it.
    """
    known = {
        tuple(members): number for number, members in process_sets._basics._get_process_set_ids_and_ranks().items()
    }
    if ranks not in known:
        return add_process_set(list(ranks))
    found = ProcessSet(list(ranks))
    found.process_set_id = known[ranks]
    return found


def halves(size: int) -> tuple[Any, Any]:
    """Return the sets of the even and of the odd ranks of a job of two or more."""
    return process_set(*range(0, size, 2)), process_set(*range(1, size, 2))
