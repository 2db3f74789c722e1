"""Which ranks of a Horovod job share a node, and the process sets for collectives among some of them.

Both are agreed among all ranks, which takes collectives of Horovod's that wait. Whoever calls has made sure before that
all ranks are about to (``agree``): a rank that another waits for in vain would be a job that hangs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from horovod.common import process_sets

from hvd_compress.compressor import Compressor
from hvd_compress.exchange import Array
from hvd_compress.kernels import UInt8
from hvd_compress.phased import phases
from hvd_compress.runtime.agreement import proposal
from hvd_compress.topology import Topology


def agree(
    compressor: Compressor,
    process_set: Any,
    basics: Any,
    check: Callable[[UInt8], None],
    gather: Callable[[Array], Array],
) -> Topology:
    """Return which ranks share a node, as far as the compressor asks, and have the process sets made that it takes.

    A compressor that does not ask costs nothing. For others all ranks compare compressors first, so that a rank with
    another compressor finds out and says so.

    Args:
        compressor: this rank's.
        process_set: that in which it works.
        basics: Horovod's module for a framework.
        check: brings the ranks' proposals together as the first agreement of any compressor does, and compares them.
        gather: all-gathers an array among all ranks. Both wait for the other ranks.

    Raises:
        NotImplementedError: the compressor asks, and the process set is not that of all ranks.
        RuntimeError: Horovod was not told that process sets may be added.
        ValueError: the ranks' compressors differ; the same on every rank.
    """
    workers: int = process_set.size()
    if not phases(compressor).asks_for_nodes or workers == 1:
        return Topology.single(workers)
    if process_set.process_set_id != 0:
        raise NotImplementedError(
            f"{compressor!r} needs process sets for the ranks of a node, and Horovod makes them only among all ranks: "
            f"use it in the global process set, not in {process_set}"
        )
    check(proposal(compressor, [], 0, [], ([], 0, ""), ""))

    def found() -> Topology:
        mine = np.array([basics.local_rank(), basics.local_size(), basics.cross_rank()], np.int32)
        return nodes_of(gather(mine).reshape(-1, 3).tolist())

    topology = phases(compressor).topology(workers, found)
    sets_of(topology, add=True)
    return topology


def nodes_of(ranks: Sequence[Sequence[int]]) -> Topology:
    """Return the topology from every rank's local rank, local size and cross rank, in rank order.

    Horovod's cross rank counts the nodes that have a rank of this local rank, so that it is a node's number where nodes
    are alike; where they are not, small nodes do not count for the local ranks that they lack.

    >>> nodes_of([(0, 1, 0), (0, 2, 1), (1, 2, 0)]).nodes
    ((0,), (1, 2))
    """
    sizes = [size for _, _, size in sorted((cross, local, size) for local, size, cross in ranks if local == 0)]
    nodes: list[list[int]] = [[] for _ in sizes]
    for rank, (local, _, cross) in enumerate(ranks):
        large = [number for number, size in enumerate(sizes) if size > local]
        nodes[large[cross]].append(rank)
    return Topology(tuple(tuple(node) for node in nodes))


def sets_of(topology: Topology, *, add: bool = False) -> dict[tuple[int, ...], Any]:
    """Return Horovod's process set for every group of the topology but that of all, by its ranks.

    Those that are not there yet are added, if ``add`` says so; all ranks must then call it at about the same time.

    Raises:
        RuntimeError: a set would have to be added, and Horovod was not told that sets may be.
    """
    sets: dict[tuple[int, ...], Any] = {}
    if topology.plain:
        return sets
    known = {tuple(ranks): number for number, ranks in process_sets._basics._get_process_set_ids_and_ranks().items()}
    for ranks in topology.groups():
        if ranks in known:
            sets[ranks] = process_sets.ProcessSet(ranks)
            sets[ranks].process_set_id = known[ranks]
            continue
        if not add:
            raise RuntimeError(f"the process set of the ranks {ranks} is gone; make a new compressor on every rank")
        if os.environ.get("HOROVOD_DYNAMIC_PROCESS_SETS") != "1":
            raise RuntimeError(
                "collectives among the ranks of a node need process sets of Horovod, which may be added only if the "
                "job was started with HOROVOD_DYNAMIC_PROCESS_SETS=1 in the environment"
            )
        sets[ranks] = process_sets.add_process_set(list(ranks))
    return sets
