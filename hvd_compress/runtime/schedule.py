"""When the exchanges of a step start: the same rule for an engine that runs them and a forecast that simulates them."""

from __future__ import annotations


def startable(complete: int, started: int, buckets: int | None, all_arrived: bool) -> int:
    """Return how many of the ``complete`` buckets may start now, in the order in which they became complete.

    A bucket starts as soon as all its gradients are there, except for the one that starts last: that waits until every
    gradient of the step has come by, those outside the buckets too, because its payload is where the other workers
    learn that one of them was not finite. In the first step nobody knows how many buckets there will be (``buckets`` is
    None), so the latest complete one waits for the next.

    >>> startable(complete=2, started=0, buckets=3, all_arrived=False)
    2
    >>> startable(complete=2, started=1, buckets=3, all_arrived=False)
    1
    >>> startable(complete=2, started=0, buckets=None, all_arrived=False)
    1

    Args:
        complete: buckets that have all their gradients and have not started.
        started: buckets that have started in this step.
        buckets: all buckets of the step, or None while they are not known.
        all_arrived: whether every gradient of the step has come by.
    """
    if all_arrived:
        return complete
    not_the_last = complete - 1 if buckets is None else buckets - 1 - started
    return max(0, min(complete, not_the_last))
