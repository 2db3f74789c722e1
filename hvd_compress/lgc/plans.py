"""What LGC's buckets may do in a step: kinds of parameters, and the plans that a bucket follows from phase to phase."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from hvd_compress.compressor import Collectives
from hvd_compress.exchange import AllGather, AllReduce, Broadcast

DENSE, TOP_K, LEARNED = "dense", "topk", "learned"
"""Kinds of parameters."""

PLANS: dict[str, Collectives] = {
    "dense": (AllGather, AllReduce),
    "topk": (AllGather,),
    "train": (Broadcast, AllGather),
    "control": (Broadcast, AllGather, Broadcast),
    "train_mpi": (Broadcast, AllGather, AllReduce),
    "control_mpi": (Broadcast, AllGather, AllReduce, Broadcast),
    "allreduce": (Broadcast, AllGather, AllReduce),
    "gather": (Broadcast, AllGather),
}
"""The plans, and the collectives of each. Phase 2 has four: with the control bucket's records or without, and by either
route; phase 3 has one for each variant."""

REDUCE_DTYPES = {"dense": "float32", "train_mpi": "float32", "control_mpi": "float32", "allreduce": "float16"}
"""What a plan all-reduces."""


def training_plan(route: str, *, control: bool) -> str:
    """Return the plan of phase 2 of a bucket that has the control parameter, or has it not."""
    return ("control" if control else "train") + ("_mpi" if route == "mpi" else "")


def kinds_of(names: Sequence[str], dense: Sequence[str] | None, topk_only: Sequence[str] | None) -> dict[str, str]:
    """Return the kind of every parameter, given the names of all in the model's order.

    ``dense`` and ``topk_only`` are patterns of the names of these kinds; None: those of the first layer and of the
    last, if there are three layers or more.
    """
    layers = list(dict.fromkeys(map(_layer, names)))
    kinds = {}
    for name in names:
        first, last = (_layer(name) == layers[end] and len(layers) >= 3 for end in (0, -1))
        if _is_chosen(name, dense, first):
            kinds[name] = DENSE
        else:
            kinds[name] = TOP_K if _is_chosen(name, topk_only, last) else LEARNED
    return kinds


def _layer(name: str) -> str:
    """Return what a parameter's name says of its layer: ``conv1`` of ``conv1.weight``, ``dense`` of
    ``dense/kernel``."""
    return name.rpartition("/" if "/" in name else ".")[0] or name


def _is_chosen(name: str, patterns: Sequence[str] | None, default: bool) -> bool:
    return default if patterns is None else any(fnmatchcase(name, pattern) for pattern in patterns)
