"""A gradient that is not finite on one worker: the step is skipped everywhere, and nothing remembers it."""

from typing import Any

import numpy as np

from hvd_compress import Compressor
from hvd_compress.exchange import AllGather
from tests.contract.configurations import held_back, make, memory, parameters, product, remembers, simulation
from tests.gradients import gradient
from tests.simulation import Simulation

SIZE, WORKERS = 3000, 3
NAMES = ("a", "b", "c")
PLACES = [(step, bad) for step in (3, 0, 1) for bad in (np.nan, np.inf, -np.inf)]


def tells(compressor: Compressor) -> bool:
    """Whether the workers learn of each other's gradients that are not finite."""
    return AllGather in compressor.schedule or compressor.signals


def reduces_only(compressor: Compressor) -> bool:
    return not tells(compressor) and not remembers(compressor)


def clean(step: int) -> dict[str, list[np.ndarray]]:
    return {name: [gradient("laplace", SIZE, step, rank, i) for rank in range(WORKERS)] for i, name in enumerate(NAMES)}


def memories(sim: Simulation) -> list[bytes]:
    return [
        array.tobytes()
        for c in sim.compressors
        for arrays in c.state_dict()["memory"].values()
        for array in arrays.values()
    ]


def assert_tells(means: dict[str, np.ndarray], bad: str, scheduler: str) -> None:
    """All means are NaN; in a graph, whose buckets decode one by one, those of the bucket that told."""
    told = [np.isnan(mean).all() for name, mean in means.items() if scheduler == "waiting" or name == bad]
    assert told
    assert all(told)
    assert all(np.isnan(mean).all() or np.isfinite(mean).all() for mean in means.values())


@product("place", PLACES, lambda c: tells(c) or remembers(c))
def test_all_workers_skip_the_step(configuration: dict[str, Any], place: tuple[int, float], scheduler: str) -> None:
    when, bad = place
    sim = simulation(configuration, WORKERS, bucket_mb=0.02)
    before: list[bytes] = []
    for step in range(5):
        given = clean(step)
        if step == when:
            before = memories(sim) if step else []
            given["b"][1][SIZE // 2] = bad
        means = sim.step(given)
        if step == when:
            assert_tells(means, "b", scheduler)
            after = memories(sim)
            assert after == before or (not before and not any(map(any, after)))
            for compressor in sim.compressors:  # what was not sent does not count as missed
                recent = compressor.stats()["recent"]
                assert recent["skipped_steps"] == 1
                assert recent["achieved"] is None
        else:
            assert all(np.isfinite(mean).all() for mean in means.values())
        for compressor in sim.compressors:
            compressor.stats()
    assert [c.stats()["total"]["skipped_steps"] for c in sim.compressors] == [1] * WORKERS


@product("bad", [np.nan, np.inf], lambda c: True)
def test_zeros_where_they_are_asked_for(configuration: dict[str, Any], bad: float, scheduler: str) -> None:
    """Of all buckets; in a graph, whose buckets decode one by one, of the one in which the gradient is."""
    sim = simulation({**configuration, "nonfinite": "zero"}, WORKERS, bucket_mb=0.02)
    sim.step(clean(0))
    given = clean(1)
    given["b"][1][SIZE // 2] = bad
    means = sim.step(given)
    for name, mean in means.items():
        assert np.isfinite(mean).all()
        assert not mean.any() or (scheduler != "waiting" and name != "b")
    assert [c.stats()["total"]["skipped_steps"] for c in sim.compressors] == [1] * WORKERS


@parameters(remembers)
def test_going_on_does_not_depend_on_who_skipped_what(configuration: dict[str, Any]) -> None:
    """Nor does it leave a trace in the algorithm's own state, on the worker that had the NaN or on another."""
    runs = []
    for culprits in ([0], [0, 1, 2]):
        sim = simulation(configuration, WORKERS)
        means = []
        for step in range(6):
            given = clean(step)
            if step == 2:
                for rank in culprits:
                    for arrays in given.values():
                        arrays[rank][:] = np.nan
            means.append(sim.step(given))
        runs.append([mean.tobytes() for step in means for mean in step.values()])
    assert runs[0] == runs[1]


@parameters(remembers)
def test_the_algorithm_s_own_state_is_as_before(configuration: dict[str, Any]) -> None:
    sim = simulation(configuration, WORKERS)
    for step in range(3):
        sim.step(clean(step))
    before = [c.state_dict()["algorithm"] for c in sim.compressors]
    given = clean(3)
    given["b"][1][7] = np.nan
    sim.step(given)
    assert [c.state_dict()["algorithm"] for c in sim.compressors] == before


@product("place", [("last", 2), ("first", 2), ("first", 0), ("last", 0)], tells)
def test_below_min_numel(configuration: dict[str, Any], place: tuple[str, int], scheduler: str) -> None:
    """A bias that Horovod reduces itself has the NaN, before or after the gradients that are compressed."""
    position, when = place
    sim = simulation(configuration, WORKERS, min_numel=100)
    before: list[bytes] = []
    for step in range(4):
        bias = {"bias": [np.ones(10, np.float32) for _ in range(WORKERS)]}
        given = bias | clean(step) if position == "first" else clean(step) | bias
        if step == when:
            before = memories(sim) if step else []
            bias["bias"][2][3] = np.nan
        means = sim.step(given)
        if step == when:
            assert_tells({name: means[name] for name in NAMES}, NAMES[-1], scheduler)
            assert np.isnan(means["bias"][3])
            after = memories(sim)
            assert after == before or (not before and not any(map(any, after)))
        else:
            assert all(np.isfinite(mean).all() for mean in means.values())


@parameters(reduces_only)
def test_plain_all_reduce_passes_them_on(configuration: dict[str, Any]) -> None:
    """Without memory and flags, what is not finite arrives where it was, as with plain Horovod."""
    sim = simulation(configuration, WORKERS)
    given = clean(0)
    given["b"][1][5] = np.nan
    given["b"][2][6] = np.inf
    means = sim.step(given)
    assert np.isnan(means["b"][5])
    assert means["b"][6] == np.inf
    assert np.isfinite(np.delete(means["b"], [5, 6])).all()
    assert np.isfinite(means["a"]).all()


@parameters(remembers)
def test_overflow_of_memory_plus_gradient(configuration: dict[str, Any]) -> None:
    """Each is finite, their sum is not: the same as a gradient that is not finite."""
    sim = Simulation(make(configuration, seed=1), 2)
    large = np.random.default_rng(0).choice([-3e38, 0, 3e38], 2000).astype(np.float32)
    mean = sim.step({"w": [large, np.zeros_like(large)]})["w"]
    if not np.isfinite(mean).all():  # what the algorithm makes of it is not finite: it is not remembered either
        assert np.isnan(mean).all()
        assert not any(array.any() for c in sim.compressors for array in memory(c, "w").values())
        return
    before = memories(sim)
    with np.errstate(over="ignore"):
        if np.isfinite(held_back(sim.compressors[0], "w") + large).all():
            return  # ratio 1: nothing is held back, or little
    mean = sim.step({"w": [large, np.zeros_like(large)]})["w"]
    assert np.isnan(mean).all()
    assert memories(sim) == before


@parameters(lambda c: c.can_flush and c.name in ("topk", "shared-topk", "randk-maxnorm", "two-level"))
def test_a_step_that_is_to_be_discarded_and_not_finite_is_one_step(
    configuration: dict[str, Any], scheduler: str
) -> None:
    """What was asked of it is not asked of the next: that counts as if nobody had asked."""
    left = []
    for asked in (False, True):
        sim = simulation(configuration, WORKERS, bucket_mb=0.02)
        for step in range(2):
            sim.step(clean(step))
        if asked:
            sim.compressors[2].discard()
        given = clean(7)
        given["b"][1][SIZE // 2] = np.nan
        sim.step(given)
        sim.step(clean(3))
        left.append(memories(sim))
    assert left[0] == left[1]
