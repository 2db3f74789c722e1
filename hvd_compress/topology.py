"""Which workers share a node, and whom a collective of some scope is among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ALL, NODE, PEERS = "all", "node", "peers"
SCOPES = (ALL, NODE, PEERS)
"""Scopes of a collective: all workers; those on this worker's node; or its peers, one on every node, which have the
same place on theirs."""


@dataclass(frozen=True)
class Topology:
    """The workers of a job by the node that they are on.

    ``nodes`` has the ranks of every node, ascending, the same on every worker. A node's workers are numbered by their
    *place* in it. Nodes may differ in size: the *shares* are as many as the smallest has workers, and a worker at a
    place beyond them has no peers but itself.

    >>> topology = Topology(((0, 1, 2), (3, 4)))
    >>> [topology.members("peers", rank) for rank in range(5)]
    [(0, 3), (1, 4), (2,), (0, 3), (1, 4)]
    >>> topology.members("node", 4), topology.shares
    ((3, 4), 2)
    """

    nodes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        ranks = sorted(rank for node in self.nodes for rank in node)
        if ranks != list(range(len(ranks))) or not all(self.nodes) or not ranks:
            raise ValueError(f"nodes must have every rank from 0 once, and none may be empty, got {self.nodes}")

    @classmethod
    def single(cls, workers: int) -> Topology:
        """Return the topology of workers that are all on one node, or of which nobody asks where they are."""
        return cls((tuple(range(workers)),))

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> Topology:
        """Return the topology of nodes of these sizes, whose ranks follow each other.

        >>> Topology.of_sizes([2, 1]).nodes
        ((0, 1), (2,))
        """
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        return cls(tuple(tuple(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)))

    @classmethod
    def of_blocks(cls, workers: int, ranks_per_node: int) -> Topology:
        """Return the topology of nodes of so many workers, whose ranks follow each other; the last may have fewer.

        >>> Topology.of_blocks(5, 2).nodes
        ((0, 1), (2, 3), (4,))
        """
        whole, rest = divmod(workers, ranks_per_node)
        return cls.of_sizes([ranks_per_node] * whole + [rest] * (rest > 0))

    @cached_property
    def workers(self) -> int:
        return sum(map(len, self.nodes))

    @cached_property
    def shares(self) -> int:
        """Return how many parts the workers of a node may divide work into, the same number on every node."""
        return min(map(len, self.nodes))

    @property
    def plain(self) -> bool:
        """Whether scopes make no difference: there is one node, or every worker has one to itself."""
        return len(self.nodes) == 1 or max(map(len, self.nodes)) == 1

    def node(self, rank: int) -> int:
        """Return the number of the node that a worker is on."""
        return self._places[rank][0]

    def place(self, rank: int) -> int:
        """Return a worker's place among those on its node."""
        return self._places[rank][1]

    def members(self, scope: str, rank: int) -> tuple[int, ...]:
        """Return the ranks among which a worker's collective of this scope is, in the order of its rows and roots."""
        if scope == ALL:
            return self._all
        if scope == NODE:
            return self.nodes[self.node(rank)]
        place = self.place(rank)
        return tuple(node[place] for node in self.nodes) if place < self.shares else (rank,)

    def alone(self, scope: str, rank: int) -> bool:
        """Return whether a worker's collective of this scope is among itself alone, though there are others."""
        return len(self.members(scope, rank)) == 1 < self.workers

    def groups(self) -> list[tuple[int, ...]]:
        """Return every group of two or more workers, but for that of all, that a collective may be among; the same ones
        in the same order on every worker."""
        peers = (tuple(node[place] for node in self.nodes) for place in range(self.shares))
        groups = dict.fromkeys(group for group in (*self.nodes, *peers) if 1 < len(group) < self.workers)
        return list(groups)

    @cached_property
    def _all(self) -> tuple[int, ...]:
        return tuple(range(self.workers))

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        return {rank: (number, place) for number, node in enumerate(self.nodes) for place, rank in enumerate(node)}


ALONE = Topology(((0,),))
"""The topology of one worker."""
