"""What a state of ``hvd.elastic`` keeps of a compressor: commit, restore, sync."""

import pickle
from typing import Any

import numpy as np

import hvd_compress
from hvd_compress import Simulation, TopK
from hvd_compress.drivers.elastic import CommittedState
from tests.contract.configurations import parameters, simulation
from tests.contract.test_changes import draw, everything
from tests.meeting import meet


def content(compressor: hvd_compress.Compressor) -> bytes:
    return pickle.dumps(compressor.state_dict())


@parameters()
def test_restoring_is_going_back(configuration: dict[str, Any]) -> None:
    """Bit for bit: what follows a restore is what followed the commit, however far training had come, also when it was
    committed before the first step, and before parameters were fused."""
    for before in (0, 1, 3):
        sim = simulation(configuration, 2, bucket_mb=0.01, seed=3)
        for step in range(before):
            sim.step(draw(step, 2))
        committed = [CommittedState(compressor) for compressor in sim.compressors]
        expected = [sim.step(draw(step, 2)) for step in range(before, before + 3)]
        for _ in range(2):
            for one in committed:
                one.restore()
            sim.change([0, 1], 2)
            for step, means in enumerate(expected, before):
                again = sim.step(draw(step, 2))
                assert {n: m.tobytes() for n, m in again.items()} == {n: m.tobytes() for n, m in means.items()}


def test_a_commit_is_of_its_own_time() -> None:
    sim = Simulation(TopK(0.1, min_numel=1), 2)
    sim.step(draw(0, 2))
    committed = CommittedState(sim.compressors[0])
    first = content(sim.compressors[0])
    sim.step(draw(1, 2))
    second = content(sim.compressors[0])
    assert second != first
    committed.restore()
    assert content(sim.compressors[0]) == first


def test_a_worker_that_joins_begins_empty_and_in_step() -> None:
    sim = Simulation(TopK(0.1, min_numel=1), 2)
    for step in range(3):
        sim.step(draw(step, 2))
    joining = TopK(0.1, min_numel=1)
    meet([CommittedState(one).sync for one in (*sim.compressors, joining)])
    state = joining.state_dict()
    assert (state["step"], state["rank"], state["workers"]) == (3, 2, 3)
    assert state["layout"] == sim.compressors[0].state_dict()["layout"]
    assert not any(array.any() for arrays in state["memory"].values() for array in arrays.values())
    assert {n: a.shape for n, arrays in state["memory"].items() for a in arrays.values()} == {
        name: (int(np.prod(arrays[0].shape)),) for name, arrays in draw(0, 1).items()
    }


def test_sync_keeps_the_memory_of_one_that_has_trained() -> None:
    sim = Simulation(TopK(0.1, min_numel=1), 2)
    sim.step(draw(0, 2))
    before = everything(sim.compressors[1])
    meet([CommittedState(one).sync for one in sim.compressors])
    assert everything(sim.compressors[1]) == before
