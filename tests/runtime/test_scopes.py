"""Collectives among some of the workers, under both schedulers."""

from typing import Any

import numpy as np
import pytest

from tests.gradients import gradient
from tests.ranks.scoped import Mesh
from tests.recording import Recorder
from tests.simulation import GraphSimulation, Simulation


@pytest.mark.parametrize("scheduled", [Simulation, GraphSimulation])
@pytest.mark.parametrize("nodes", [1, 2, 5, [1, 3, 1], [4, 1]], ids=str)
def test_every_collective_in_every_scope(scheduled: Any, nodes: Any) -> None:
    sim = scheduled(Mesh(min_numel=1), 5, nodes)
    for step in range(3):
        given = [gradient("normal", 501, step, rank) for rank in range(5)]
        mean = sim.step({"w": given})["w"]
        np.testing.assert_allclose(mean, np.mean(given, axis=0, dtype=np.float64), atol=1e-6)


def test_bytes_by_scope(recorder: Recorder) -> None:
    sim = Simulation(Mesh(min_numel=1), 5, [3, 2])
    sim.step({"w": [gradient("normal", 501, rank) for rank in range(5)]})
    for rank, compressor in enumerate(sim.compressors):
        sent = dict.fromkeys(("all", "node", "peers"), 0)
        for post in recorder.of(rank):
            sent[post.scope] += post.sent
        assert compressor.stats()["total"]["sent_bytes_by_scope"] == sent
        assert all(sent.values())


@pytest.mark.parametrize(
    ("nodes", "message"),
    [([2, 2], "must have 5 workers in all"), (6, "nodes must be from 1 to 5"), ([5, 0], "nodes must be at least 1")],
    ids=str,
)
def test_nodes_that_cannot_be(nodes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(Mesh(), 5, nodes)
