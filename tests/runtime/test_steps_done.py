"""Compressors are told of every step that is over, once, also after a restore and among other workers."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_compress import PhasedCompressor, TopK, compressor_dataclass
from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.exchange import Bucket
from tests.contract.test_changes import draw
from tests.simulation import GraphSimulation, Simulation


@compressor_dataclass
class Noting(TopK, PhasedCompressor):
    """Notes what it is told."""

    def plans(self, bucket: Bucket) -> dict[str, Any]:
        return {"": self.schedule}

    def plan(self, bucket: Bucket) -> str:
        return ""

    def step_done(self, step: int, count: int = 1) -> None:
        self.__dict__.setdefault("told", []).append((step, count))


@pytest.mark.parametrize("scheduled", [Simulation, GraphSimulation])
def test_every_step_once(scheduled: type[Simulation | GraphSimulation]) -> None:
    """A graph's worker says it when the next step begins."""
    sim = scheduled(Noting(0.05, min_numel=1), 2)

    def told(steps: range, workers: int = 2) -> None:
        for step in steps:
            sim.step(draw(step, workers))
        late = [(steps.stop - 1, 1)] if scheduled is GraphSimulation else []
        for compressor in sim.compressors:
            assert compressor.__dict__.pop("told") + late == [(step, 1) for step in steps]

    told(range(2))
    committed = [CommittedState(compressor) for compressor in sim.compressors]
    sim.step(draw(2, 2))
    for compressor in sim.compressors:
        compressor.__dict__.pop("told")
    for one in committed:
        one.restore()
    sim.change([0, 1], 2)
    told(range(2, 5))
    sim.change([0], 1)
    sim.step(draw(5, 1))
    sim.step(draw(6, 1))
    (survivor,) = sim.compressors
    first = 4 if scheduled is GraphSimulation else 5
    assert survivor.__dict__.pop("told") == [(step, 1) for step in range(first, first + 2)]
    sim.change([0], 2)
    for step in (7, 8, 9):
        sim.step(draw(step, 2))
    assert sim.compressors[1].__dict__["told"][0] == (7, 1)
