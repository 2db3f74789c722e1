"""Which workers share a node, and whom collectives of a scope are among."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress.drivers.nodes import nodes_of
from hvd_compress.topology import SCOPES, Topology

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@given(SIZES)
def test_every_worker_sees_the_same_groups(sizes: list[int]) -> None:
    topology = Topology.of_sizes(sizes)
    for scope in SCOPES:
        for rank in range(sum(sizes)):
            members = topology.members(scope, rank)
            assert rank in members
            assert all(topology.members(scope, other) == members for other in members)


@given(SIZES)
def test_groups_are_all_that_need_a_process_set(sizes: list[int]) -> None:
    topology = Topology.of_sizes(sizes)
    found = {topology.members(scope, rank) for scope in SCOPES for rank in range(sum(sizes))}
    groups = topology.groups()
    assert set(groups) == {group for group in found if 1 < len(group) < sum(sizes)}
    assert len(set(groups)) == len(groups)


@given(SIZES)
def test_a_node_and_its_peers_meet_in_one_worker(sizes: list[int]) -> None:
    """What is scattered in a node, exchanged among peers and gathered in the node again has been everywhere."""
    topology = Topology.of_sizes(sizes)
    for rank in range(sum(sizes)):
        reached = {
            peer
            for other in topology.members("node", rank)[: topology.shares]
            for peer in topology.members("peers", other)
        }
        assert {topology.node(other) for other in reached} == set(range(len(sizes)))


@given(SIZES, st.booleans())
def test_what_horovod_says_of_nodes(sizes: list[int], by_node: bool) -> None:
    """Ranks that follow each other on a node, and ranks dealt out one to a node in turn."""
    slots = [(node, local) for node, size in enumerate(sizes) for local in range(size)]
    if by_node:
        slots.sort(key=lambda slot: (slot[1], slot[0]))
    told = [(local, sizes[node], sum(size > local for size in sizes[:node])) for node, local in slots]
    topology = nodes_of(told)
    assert [topology.node(rank) for rank in range(len(slots))] == [node for node, _ in slots]
    assert [topology.place(rank) for rank in range(len(slots))] == [local for _, local in slots]


def test_plain() -> None:
    assert Topology.single(3).plain
    assert Topology.of_sizes([1, 1]).plain
    assert not Topology.of_sizes([2, 1]).plain
    assert Topology.of_blocks(4, 8) == Topology.single(4)


@pytest.mark.parametrize("nodes", [((0, 1), (1,)), ((0,), ()), ((0,), (2,)), ()], ids=repr)
def test_no_topology(nodes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="every rank from 0 once"):
        Topology(nodes)
