"""What goes over the network: the same on every worker, and nothing about it but its content depends on the data."""

import struct
from typing import Any

import numpy as np

from hvd_compress import Auto
from hvd_compress.exchange import AllGather, AllReduce
from hvd_compress.sparsifier import Sparsifier
from tests import wire
from tests.contract.configurations import algorithm, make, parameters, product, selects, simulation, sparse
from tests.gradients import DISTRIBUTIONS, gradient
from tests.recording import Recorder
from tests.simulation import Simulation

SIZES = {"a": 5000, "b": 70_000, "c": 2000}


def forms(configuration: dict[str, Any], recorder: Recorder, distribution: str, workers: int) -> list[list[Any]]:
    """Per rank, what it sent in 4 steps, but for the content. (When a later round starts is a matter of timing.)"""
    recorder.clear()
    sim = simulation(configuration, workers, bucket_mb=0.05)
    for step in range(4):
        sim.step(
            {
                name: [gradient(distribution, size, step, rank) for rank in range(workers)]
                for name, size in SIZES.items()
            }
        )
    return [sorted((post.form for post in recorder.posts if post.rank == rank), key=str) for rank in range(workers)]


# The first make a difference if any do: nothing, or little, to select, much of the same, many scales, overflow.
GROUPS = [("zeros", "one_hot", "ties", "mixed_scales", "huge")]
GROUPS.append(tuple(sorted(set(DISTRIBUTIONS) - set(GROUPS[0]))))


@product("distributions", GROUPS)
def test_same_collectives_for_any_data_and_rank(
    configuration: dict[str, Any], distributions: tuple[str, ...], recorder: Recorder
) -> None:
    expected = forms(configuration, recorder, "normal", 2)[0]
    for distribution in distributions:
        if distribution == "huge" and make(configuration).signals:
            continue  # their norms and memories overflow, and a step that is abandoned ends after the first round
        for rank_forms in forms(configuration, recorder, distribution, 2):
            assert rank_forms == expected


@parameters()
def test_names_are_unique_within_a_step_and_stable_after_the_first(
    configuration: dict[str, Any], recorder: Recorder
) -> None:
    """Horovod matches collectives by name, and caches what it knows of a name."""
    sim = simulation(configuration, 2, bucket_mb=0.05)
    names = []
    for step in range(4):
        recorder.clear()
        sim.step({name: [gradient("laplace", size, step, r) for r in range(2)] for name, size in SIZES.items()})
        names.append([post.name for post in recorder.posts if post.rank == 0])
        assert len(set(names[-1])) == len(names[-1])
        assert all(name.startswith("hvd_compress.") for name in names[-1])
    assert names[1] == names[2] == names[3]


@parameters()
def test_schedule_is_what_is_sent(configuration: dict[str, Any], recorder: Recorder) -> None:
    sim = simulation(configuration, 2)
    sim.step({"w": [gradient("normal", 3000, rank) for rank in range(2)]})
    assert tuple(post.kind for post in recorder.of(0)) == tuple(make(configuration).schedule)


@parameters(sparse)
def test_sparse_payloads(configuration: dict[str, Any], recorder: Recorder) -> None:
    """Size by the documented formula; little-endian header; no more entries than the capacity, the largest ones."""
    compressor = make(configuration)
    sim = Simulation(compressor, 2)
    size = 150_000
    sim.step({"w": [gradient("heavy_tailed", size, rank) for rank in range(2)]})
    for rank in range(2):
        (payload,) = recorder.payloads(rank)
        fields, entries = wire.read(payload.tobytes())
        assert fields["version"] == 1
        assert fields["codec"] == wire.WIRES.index(compressor.wire)
        assert fields["flags"] == 0
        assert fields["elements"] == size
        assert len(payload) == wire.nbytes(size, fields["capacity"], compressor.wire)
        assert fields["capacity"] % 8 == 0
        assert 0 < len(entries) <= fields["capacity"]


@parameters(lambda c: AllGather in c.schedule and c.name != "two-level")
def test_flags_in_the_header(configuration: dict[str, Any], recorder: Recorder) -> None:
    """Bit 0: not finite; bit 1: this worker asks for a flush. Only the worker concerned sets them."""

    def flags() -> list[int]:
        return [struct.unpack_from("<H", recorder.payloads(rank)[0].tobytes(), 2)[0] for rank in range(3)]

    sim = simulation(configuration, 3)
    given = [gradient("normal", 3000, rank) for rank in range(3)]
    given[1][7] = np.inf
    sim.step({"w": given})
    assert flags() == [0, 1, 0]
    recorder.clear()
    sim.compressors[2].flush()
    given[1][7] = 0
    sim.step({"w": given})
    assert flags() == [0, 0, 2 if sim.compressors[2].error_feedback else 0]


@parameters()
def test_statistics_are_what_was_sent(configuration: dict[str, Any], recorder: Recorder) -> None:
    sim = simulation(configuration, 2, min_numel=100, bucket_mb=0.01)
    model = {"w": 3000, "bias": 10, "v": 5000}
    totals = [0, 0]
    for step in range(4):
        recorder.clear()
        if step == 2:
            sim.compressors[1].flush()
        sim.step({name: [gradient("normal", size, step, r) for r in range(2)] for name, size in model.items()})
        for rank, compressor in enumerate(sim.compressors):
            stats = compressor.stats()
            sent = sum(post.sent for post in recorder.of(rank))
            totals[rank] += sent
            assert stats["recent"]["steps"] == 1
            assert stats["recent"]["sent_bytes"] == sent
            assert stats["total"]["sent_bytes"] == totals[rank]
            assert stats["recent"]["dense_bytes"] == 4 * sum(model.values())
            assert stats["recent"]["ratio"] == 4 * sum(model.values()) / sent
            assert stats["total"]["steps"] == step + 1
            assert all(seconds >= 0 for seconds in stats["recent"]["seconds"].values())
            if sparse(compressor):
                entries = sum(len(wire.read(payload.tobytes())[1]) for payload in recorder.payloads(rank))
                assert stats["recent"]["achieved"] == entries / target(compressor, step, model)
            elif isinstance(compressor, Auto):  # of what its candidates select; everything is sent at first
                assert (stats["recent"]["achieved"] is None) == (step == 0)
            elif isinstance(algorithm(compressor), Sparsifier):  # what finds no room on the way to an owner is not sent
                assert 0.8 < stats["recent"]["achieved"] < 1.25
            elif selects(compressor):
                assert stats["recent"]["achieved"] == 1.0
            else:
                assert stats["recent"]["achieved"] is None


def target(compressor: Any, step: int, model: dict[str, int]) -> int:
    """k as the class documents it: the ratio of each bucket's elements, at least one."""
    ratio = compressor.ratio(step) if callable(compressor.ratio) else compressor.ratio
    # 0.01 MiB holds 2,621 elements: each of the two is a bucket of its own, fused or not
    return sum(max(1, round(ratio * size)) for size in model.values() if size >= compressor.min_numel)


def test_recorder_sees_all(recorder: Recorder) -> None:
    """The other tests of this file say nothing if this fails."""
    sim = simulation({"name": "dense"}, 2, min_numel=10)
    sim.step({"w": [np.ones(20)] * 2, "bias": [np.ones(2)] * 2})
    kinds = sorted((post.kind.__name__, post.array.size) for post in recorder.of(1))
    assert kinds == [(AllReduce.__name__, 2), (AllReduce.__name__, 20)]
