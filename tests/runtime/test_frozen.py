"""Parameters that are frozen while a job trains, on all workers or on some."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, FFT, Compressor, RandKMaxNorm, SIDCo, TopK, TwoLevel
from tests.contract.configurations import make, parameters
from tests.gradients import gradient
from tests.runtime.team import Team

SIZES = [("a", 300), ("b", 200), ("c", 500)]
FROZEN = 1
EXACT = [TopK(0.05), SIDCo(0.05), FFT(0.05), FFT(0.05, block=None), TwoLevel(FFT(0.05), ranks_per_node=2)]
"""The sum of means and memories is that of the gradients."""


def team(compressor: Compressor, ranks: int) -> Team:
    return Team([dataclasses.replace(compressor, bucket_mb=0.005) for _ in range(ranks)], SIZES)


def draw(step: int, rank: int) -> dict[int, np.ndarray]:
    return {i: gradient("laplace", n, step, rank, i) for i, (_, n) in enumerate(SIZES)}


def step(it: Team, number: int, frozen: Collection[int] = ()) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Do a step in which the ranks ``frozen`` have frozen a parameter, as a driver does it; return the means, and the
    sums of the gradients."""
    sums = {i: np.zeros(n) for i, (_, n) in enumerate(SIZES)}
    for rank, engine in enumerate(it.engines):
        given = draw(number, rank)
        if rank in frozen:
            given[FROZEN][:] = 0
        for index, array in given.items():
            engine.add(index, array, frozen=rank in frozen and index == FROZEN)
            sums[index] += array
    it.finish()
    means = []
    for engine in it.engines:
        if len(frozen) == len(it.engines):
            engine.rest(FROZEN)
        means.append({index: mean.copy() for index, mean in engine.means.items()})
    for other in means[1:]:
        assert {i: m.tobytes() for i, m in means[0].items()} == {i: m.tobytes() for i, m in other.items()}
    return means[0], sums


def held(it: Team, name: str) -> list[dict[str, np.ndarray]]:
    return [engine.state_dict()["memory"].get(name, {}) for engine in it.engines]


def assert_same(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])


@parameters()
def test_a_frozen_parameter_does_not_move(configuration: dict[str, Any]) -> None:
    """Nor does what is held back of it change, in whatever way the algorithm spreads what it sends."""
    it = team(make(configuration), 4)
    step(it, 0)
    step(it, 1)
    before = held(it, "b")
    moved = False
    for number in range(2, 7):
        means, _ = step(it, number, range(4))
        assert not means[FROZEN].any()
        moved = moved or means[0].any()
        assert_same(held(it, "b"), before)
    assert moved
    step(it, 7)


@pytest.mark.parametrize("compressor", EXACT, ids=repr)
def test_nothing_is_lost(compressor: Compressor) -> None:
    """Whichever ranks have frozen it: with all means applied, the memories have the rest of the gradients."""
    it = team(compressor, 4)
    total, applied = ({i: np.zeros(n) for i, (_, n) in enumerate(SIZES)} for _ in range(2))
    everyone = range(4)
    for number, frozen in enumerate([(), (), (1,), (1, 2), everyone, everyone, (1,), everyone, (), (0, 3), (), ()]):
        if number == 7:
            it.engines[2]._core.compressor.discard()
        if number == 9:
            it.engines[2]._core.compressor.flush()
        before = held(it, "b") if number else []
        means, sums = step(it, number, frozen)
        if frozen == everyone:
            assert_same(held(it, "b"), before)
        if number == 7:
            continue  # its gradients are to leave no trace, and its means are not applied
        for index in total:
            total[index] += sums[index]
            applied[index] += 4 * means[index].astype(np.float64)
    for index, (name, _) in enumerate(SIZES):
        rest = sum(memory["residual"].astype(np.float64) for memory in held(it, name))
        np.testing.assert_allclose(applied[index] + rest, total[index], atol=1e-4)
    assert applied[FROZEN].any()


@pytest.mark.parametrize(
    "compressor", [TopK(0.05), DGC(0.05), RandKMaxNorm(0.2, error_feedback=True), FFT(0.05)], ids=lambda c: c.name
)
def test_a_flush_while_a_parameter_is_frozen(compressor: Compressor) -> None:
    """What the others hold is sent; the frozen one's waits, so that the states of the ranks are not alike, and say so.
    A flush once it is thawed sends that, too."""
    it = team(compressor, 2)
    step(it, 0)
    waiting = held(it, "b")
    it.engines[0]._core.compressor.flush()
    step(it, 1, (0, 1))
    sent = "velocity" if compressor.name == "dgc" else "residual"
    for engine, before in zip(it.engines, waiting, strict=True):
        state = engine.state_dict()
        assert not state["flushed"]
        assert [name for name, arrays in state["memory"].items() if arrays[sent].any()] == ["b"]
        for key, array in before.items():
            np.testing.assert_array_equal(state["memory"]["b"][key], array)
        assert not engine._core.compressor.runtime.flush_requested
    it.engines[1]._core.compressor.flush()
    step(it, 2)
    for engine in it.engines:
        state = engine.state_dict()
        assert state["flushed"]
        assert not any(arrays[sent].any() for arrays in state["memory"].values())
