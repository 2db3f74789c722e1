"""Dense within nodes, compressed between them: what is sent where, who remembers what, and that nothing is lost."""

import itertools
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import AllGather, ReduceScatter, TwoLevel
from tests.gradients import gradient
from tests.recording import Recorder
from tests.simulation import GraphSimulation, Simulation

SIZES = {"a": 1003, "b": 77, "c": 1500}
NODES: list[Any] = [[2, 2], [3, 1], [1, 2, 2], [4, 4]]
SCHEDULED = pytest.mark.parametrize("scheduled", [Simulation, GraphSimulation])
INNER: list[dict[str, Any]] = [
    {"name": "topk", "ratio": 0.05},
    {"name": "sidco", "ratio": 0.05, "aggregate": "reduce-scatter"},
    {"name": "fft", "ratio": 0.1},
]


def make(inner: dict[str, Any], **arguments: Any) -> TwoLevel:
    return TwoLevel(inner, **{"min_numel": 1, "bucket_mb": 0.005, **arguments})


def integers(step: int, workers: int) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(step)
    return {
        name: [rng.integers(-500, 500, size).astype(np.float32) for _ in range(workers)] for name, size in SIZES.items()
    }


def held(sim: Any, name: str) -> np.ndarray:
    return sum(c.state_dict()["memory"][name]["residual"].astype(np.float64) for c in sim.compressors)


@SCHEDULED
@pytest.mark.parametrize("nodes", [*NODES, 1, 4], ids=str)
def test_nothing_is_lost(scheduled: Any, nodes: Any) -> None:
    """While parameters are fused to buckets, too. Integers: exactly, where N and the nodes are powers of two."""
    workers = 4 if isinstance(nodes, int) else sum(nodes)
    sim = scheduled(make(INNER[0]), workers, nodes)
    brought = dict.fromkeys(SIZES, 0.0)
    sent = dict.fromkeys(SIZES, 0.0)
    for step in range(5):
        given = integers(step, workers)
        means = sim.step(given)
        for name, arrays in given.items():
            brought[name] = brought[name] + np.sum(arrays, axis=0, dtype=np.float64)
            sent[name] = sent[name] + workers * means[name].astype(np.float64)
            total = sent[name] + held(sim, name)
            if workers in (4, 8) and nodes != [1, 2, 2]:
                np.testing.assert_array_equal(total, brought[name])
            np.testing.assert_allclose(total, brought[name], atol=0.01)


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner["name"])
@pytest.mark.parametrize("nodes", NODES, ids=str)
def test_same_as_the_wrapped_exchange_of_the_nodes_sums(inner: dict[str, Any], nodes: list[int]) -> None:
    """Of nodes of one worker that has the sum, if there is one share. (Each share is selected from by itself.)"""
    smallest = min(nodes)
    sizes = [size if smallest == 1 else 1 for size in nodes]
    if smallest > 1:
        nodes = [1] * len(nodes)
    sim = Simulation(make(inner), sum(nodes), nodes)
    plain = Simulation(hvd_compress.from_config({**inner, "min_numel": 1, "bucket_mb": 0.005}), len(nodes))
    for step in range(4):
        given = integers(step, sum(nodes))
        bounds = np.cumsum([0, *sizes])
        sums = {
            name: [np.sum(arrays[a:b], axis=0) for a, b in itertools.pairwise(bounds)] for name, arrays in given.items()
        }
        means, expected = sim.step(given), plain.step(sums)
        for name in SIZES:
            np.testing.assert_allclose(means[name] * sum(nodes), expected[name] * len(nodes), rtol=1e-5, atol=1e-3)


@SCHEDULED
def test_a_worker_remembers_its_share(scheduled: Any) -> None:
    """One piece of every parameter, whatever bucket that is in; and all of it is somebody's."""
    sim = scheduled(make(INNER[0]), 6, 2)
    for step in range(3):
        sim.step(integers(step, 6))
        for name, size in SIZES.items():
            length = -(-size // 3)
            for rank, compressor in enumerate(sim.compressors):
                memory = compressor.state_dict()["memory"][name]["residual"]
                mine = np.zeros(size, bool)
                mine[rank % 3 * length : (rank % 3 + 1) * length] = True
                assert memory[mine].any()
                assert not memory[~mine].any()


def test_memory_is_of_the_size_of_the_share() -> None:
    sim = Simulation(make(INNER[0], bucket_mb=25), 8, 2)
    for step in range(2):
        sim.step(integers(step, 8))
    (bucket,) = sim._workers[0]._engine._core.buckets
    (array,) = bucket.bucket.memory.arrays().values()
    assert array.size == sum(-(-size // 4) for size in SIZES.values())


def test_what_is_sent_where(recorder: Recorder) -> None:
    """Dense within the node: the gradient and the share's mean; compressed among peers: of the share alone."""
    sim = Simulation(make({"name": "topk", "ratio": 0.1}, bucket_mb=25), 8, 2)
    sim.step({"w": [gradient("normal", 40_000, rank) for rank in range(8)]})
    for rank, compressor in enumerate(sim.compressors):
        kinds = [(post.kind.__name__, post.scope) for post in recorder.of(rank)]
        assert kinds == [("ReduceScatter", "node"), ("AllGather", "peers"), ("AllGather", "node")]
        sent = compressor.stats()["total"]["sent_bytes_by_scope"]
        assert sent == {
            "all": 0,
            "node": 4 * (40_000 + 4 * 3) + 16 + 40_000,
            "peers": recorder.of(rank)[1].array.nbytes,
        }
        assert sent["peers"] == pytest.approx(6 * 0.1 * 10_000, rel=0.01)


@SCHEDULED
@pytest.mark.parametrize("inner", [*INNER, {"name": "randk-maxnorm", "ratio": 0.2}], ids=lambda inner: inner["name"])
@pytest.mark.parametrize("nodes", [[2, 2], [3, 1]], ids=str)
def test_who_asks_and_whose_gradient_is_not_finite(scheduled: Any, inner: dict[str, Any], nodes: list[int]) -> None:
    """Any worker, also one without a share: the step leaves no trace, and a flush empties all memories."""
    for culprit in range(4):
        sim = scheduled(make(inner), 4, nodes)
        sim.step(integers(0, 4))
        before = [c.state_dict()["memory"] for c in sim.compressors]
        given = integers(1, 4)
        given["b"][culprit][40] = np.nan
        assert np.isnan(sim.step(given)["b"]).all()
        sim.compressors[culprit].discard()
        assert np.isfinite(sim.step(integers(2, 4))["b"]).all()
        for compressor, memory in zip(sim.compressors, before, strict=True):
            for name, arrays in compressor.state_dict()["memory"].items():
                np.testing.assert_array_equal(arrays["residual"], memory[name]["residual"])
        sim.compressors[culprit].flush()
        sim.step(integers(3, 4))
        assert not any(held(sim, name).any() for name in SIZES)
        assert {c.stats()["total"]["skipped_steps"] for c in sim.compressors} == {1}


@pytest.mark.parametrize("inner", [INNER[0], {"name": "qsgd-maxnorm"}], ids=lambda inner: inner["name"])
def test_a_bias_that_is_not_finite(inner: dict[str, Any]) -> None:
    for culprit in range(4):
        sim = Simulation(make(inner, min_numel=100), 4, [3, 1])
        biases = [np.full(7, np.inf if rank == culprit else 1.0) for rank in range(4)]
        means = sim.step({"w": integers(0, 4)["a"], "bias": biases})
        assert np.isnan(means["w"]).all()


@pytest.mark.parametrize("nodes", [[2, 2], [3, 1], 1], ids=str)
@pytest.mark.parametrize("later", [[2, 2], [1, 3], 4], ids=str)
def test_resuming_on_other_nodes(nodes: Any, later: Any) -> None:
    """What a worker held back of a share that is another's now is flushed in the first step; nothing is lost."""
    sim = Simulation(make(INNER[0]), 4, nodes)
    for step in range(3):
        sim.step(integers(step, 4))
    rest = {name: held(sim, name) for name in SIZES}
    again = Simulation(make(INNER[0]), 4, later)
    for compressor, before in zip(again.compressors, sim.compressors, strict=True):
        compressor.load_state_dict(before.state_dict())
    given = integers(3, 4)
    means = again.step(given)
    for name, arrays in given.items():
        total = 4 * means[name].astype(np.float64) + held(again, name)
        np.testing.assert_array_equal(total, rest[name] + np.sum(arrays, axis=0, dtype=np.float64))
    if nodes == later:
        expected = sim.step(given)
        assert all(expected[name].tobytes() == means[name].tobytes() for name in SIZES)


@SCHEDULED
@pytest.mark.parametrize("nodes", [[2, 2], [3, 1], [1, 2, 2]], ids=str)
def test_momenta_after_a_flush(scheduled: Any, nodes: list[int]) -> None:
    """Those that have a share have the mean of its momenta; each worker's state has them of all shares, so that all may
    go on from one; and they are nobody else's once training has gone on."""
    workers = sum(nodes)
    sim = scheduled(make({"name": "dgc", "ratio": 0.05}), workers, nodes)
    for step in range(3):
        sim.step(integers(step, workers))
    sim.compressors[1].flush()
    sim.step(integers(3, workers))
    states = [compressor.state_dict() for compressor in sim.compressors]
    for name in SIZES:
        first = states[0]["memory"][name]
        assert np.count_nonzero(first["momentum"]) > 0.9 * SIZES[name]
        for state in states:
            np.testing.assert_array_equal(state["memory"][name]["momentum"], first["momentum"])
            assert not state["memory"][name]["velocity"].any()
    again = scheduled(make({"name": "dgc", "ratio": 0.05}), workers, nodes)
    for compressor in again.compressors:
        compressor.load_state_dict(states[0])
    for step in (4, 5):
        means, others = sim.step(integers(step, workers)), again.step(integers(step, workers))
        assert {name: mean.tobytes() for name, mean in means.items()} == {n: m.tobytes() for n, m in others.items()}
    for name in SIZES:
        pieces = [compressor.state_dict()["memory"][name]["momentum"] for compressor in sim.compressors]
        assert sum(map(np.count_nonzero, pieces)) <= len(nodes) * SIZES[name]


def test_resuming_with_another_number_of_workers() -> None:
    sim = Simulation(make(INNER[0]), 4, 2)
    sim.step(integers(0, 4))
    sim.compressors[3].flush()
    sim.step(integers(1, 4))
    again = Simulation(make(INNER[0]), 6, 3)
    for compressor in again.compressors:
        compressor.load_state_dict(sim.compressors[0].state_dict())
    assert all(np.isfinite(mean).all() for mean in again.step(integers(2, 6)).values())


def test_frozen_and_rescaled_memories() -> None:
    """A share is set aside and scaled as any memory is."""
    sim = Simulation(make(INNER[0]), 4, 2)
    sim.step(integers(0, 4))
    core = sim._workers[1]._engine._core
    before = sim.compressors[1].state_dict()["memory"]
    (bucket,) = [bucket for bucket in core.buckets if "a" in bucket.parts]
    core.buckets.freeze(bucket, "a", True)
    assert not bucket.bucket.memory.read(bucket.parts["a"])["residual"].any()
    core.rescale(2.0)
    core.buckets.freeze(bucket, "a", False)
    after = sim.compressors[1].state_dict()["memory"]
    for name in SIZES:
        np.testing.assert_array_equal(after[name]["residual"], 2 * before[name]["residual"])


def test_common_parameters_may_be_given_to_either() -> None:
    outer, inner = TwoLevel({"name": "topk"}, min_numel=5), TwoLevel({"name": "topk", "min_numel": 5})
    assert outer.min_numel == inner.min_numel == outer.inner.min_numel == inner.inner.min_numel == 5
    assert (
        outer.to_config() == inner.to_config() == {"name": "two-level", "compressor": {"name": "topk"}, "min_numel": 5}
    )
    with pytest.raises(ValueError, match="min_numel is 4 for TwoLevel and 5"):
        TwoLevel({"name": "topk", "min_numel": 5}, min_numel=4)


@pytest.mark.parametrize(
    "inner",
    [{"name": "two-level"}, {"name": "topk", "aggregate": "auto", "ratio": {"schedule": "warmup", "final": 0.01}}],
    ids=str,
)
def test_steps_that_are_not_all_alike(inner: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whose steps are all alike"):
        TwoLevel(inner)


def test_what_the_wrapped_compressor_needs_is_passed_on() -> None:
    dgc = TwoLevel(hvd_compress.DGC(0.05, weight_decay=0.1), ranks_per_node=2)
    momentum = dgc.mean_momentum()
    assert momentum is not None
    assert momentum.weight_decay == 0.1
    with pytest.raises(ValueError, match="leave out memory_unit"):
        TwoLevel(hvd_compress.TopK(0.05, memory_unit="update"), ranks_per_node=2)


@SCHEDULED
@pytest.mark.parametrize("nodes", [2, [3, 1]], ids=str)
def test_every_worker_clips_its_own_gradient_of_each_parameter(scheduled: Any, nodes: Any) -> None:
    """As without nodes, whatever the parameters are fused to."""
    arguments: dict[str, Any] = {"momentum": 0.5, "clip": 1.0, "min_numel": 4}
    sims = [
        scheduled(hvd_compress.DGC(1.0, **arguments), 4),
        scheduled(TwoLevel(hvd_compress.DGC(1.0, **arguments)), 4, nodes),
        scheduled(TwoLevel(hvd_compress.DGC(1.0, bucket_mb=1e-6, **arguments)), 4, nodes),
    ]
    for step in range(3):
        given = {
            name: [scale * gradient("normal", size, step, rank).reshape(-1, 10) for rank in range(4)]
            for name, size, scale in (("a", 100, 0.02), ("b", 310, 1.0), ("c", 200, 0.3))
        }
        expected, *means = (sim.step(given) for sim in sims)
        for mean in means:
            for name in given:
                np.testing.assert_allclose(mean[name], expected[name], rtol=1e-5, atol=1e-6)


@SCHEDULED
def test_each_parameter_has_the_scale_of_its_own(scheduled: Any) -> None:
    """Of a quantizer with one for each layer: small elements become multiples of a small number, not of the largest."""
    sim = scheduled(TwoLevel(hvd_compress.TernGrad(chunk="layer", clip=None, min_numel=4)), 4, 2)
    given = {
        "large": [np.full((8, 5), 1.0, np.float32)] * 4,
        "small": [np.full((8, 5), 2.0**-10, np.float32)] * 4,
    }
    for _ in range(2):  # with a bucket for each parameter, and with one for both
        means = sim.step(given)
        for name, arrays in given.items():
            np.testing.assert_array_equal(means[name], arrays[0])


@pytest.mark.parametrize(("inner", "told"), [("dense", False), ("topk", True), ("qsgd-maxnorm", True)])
def test_whether_workers_tell_what_is_not_finite(inner: str, told: bool) -> None:
    """The node's own all-gather says nothing of it."""
    compressor = TwoLevel(inner, ranks_per_node=2)
    assert compressor.tells("", (ReduceScatter, *compressor.inner.schedule, AllGather)) == told


@pytest.mark.parametrize("survivors", [[1, 0, 3, 2], [2, 3, 0, 1]])
def test_workers_at_other_places_are_refused(survivors: list[int]) -> None:
    """What a worker holds back is of its share: at another place, or on another node, it would be added elsewhere."""
    simulation = hvd_compress.Simulation(TwoLevel(hvd_compress.TopK(0.05, min_numel=1), ranks_per_node=2), 4)
    gradients = {"w": [np.full((8, 16), rank + 1.0) for rank in range(4)]}
    simulation.step(gradients)
    simulation.change(survivors, 4)
    with pytest.raises(ValueError, match="the workers have changed"):
        simulation.step(gradients)
