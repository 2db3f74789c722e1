"""Exchanges of several rounds, and exchanges that break their contract."""

from typing import Any

import numpy as np
import pytest

from hvd_compress import AllGather, AllReduce, Broadcast, Compressor, NonFiniteGradient, compressor_dataclass
from hvd_compress.drivers.simulation import SimulatedTransport
from tests.gradients import gradient
from tests.recording import Recorder
from tests.runtime.team import Team
from tests.simulation import Simulation


@compressor_dataclass
class Scaled(Compressor):
    """Sums integers scaled by the largest magnitude anywhere: two rounds; what rounding takes off is remembered."""

    name = "scaled"
    schedule = (AllReduce, AllReduce)
    error_feedback = True

    def exchange(self, bucket: Any) -> Any:
        values = bucket.values
        largest = np.abs(values).max(initial=0).astype(np.float32).reshape(1)
        if not bucket.finite:
            largest[:] = np.nan
        largest = yield AllReduce(largest, op="max")
        if not np.isfinite(largest[0]):
            raise NonFiniteGradient
        scale = max(float(largest[0]), 1e-30) / 1000
        codes = np.rint(values / scale).astype(np.int32)
        values -= (codes * scale).astype(np.float32)
        total = yield AllReduce(codes)
        bucket.decoded[:] = total * (scale / bucket.workers)
        return bucket.decoded


@compressor_dataclass
class Led(Compressor):
    """The leader's indices first, then everybody's values at them; without memory."""

    name = "led"
    schedule = (Broadcast, AllReduce)

    def exchange(self, bucket: Any) -> Any:
        order = np.argsort(-np.abs(bucket.values))[:10].astype(np.int64)
        indices = yield Broadcast(order, root=bucket.workers - 1)
        total = yield AllReduce(bucket.values[indices])
        bucket.decoded[:] = 0
        bucket.decoded[indices] = total / np.float32(bucket.workers)
        return bucket.decoded


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_two_rounds(workers: int) -> None:
    sim = Simulation(Scaled(min_numel=1), workers)
    held = np.zeros(500)
    for step in range(5):
        given = [gradient("normal", 500, step, rank) for rank in range(workers)]
        mean = sim.step({"w": given})["w"].astype(np.float64)
        total = sum(g.astype(np.float64) for g in given) + held
        held = sum(c.state_dict()["memory"]["w"]["residual"].astype(np.float64) for c in sim.compressors)
        np.testing.assert_allclose(workers * mean + held, total, atol=1e-5)
        assert np.abs(held).max() <= workers * 5 * 1e-3


def test_broadcast_first(recorder: Recorder) -> None:
    sim = Simulation(Led(min_numel=1), 3)
    given = [gradient("normal", 200, rank) for rank in range(3)]
    mean = sim.step({"w": given})["w"]
    leaders = np.argsort(-np.abs(given[2]))[:10]
    expected = np.zeros(200)
    expected[leaders] = np.mean(given, axis=0)[leaders]
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert [(post.kind, post.name) for post in recorder.of(1)] == [
        (Broadcast, "hvd_compress.w.round0"),
        (AllReduce, "hvd_compress.w.round1"),
    ]


def test_an_exchange_says_itself_that_it_is_not_finite() -> None:
    """Without an all-gather there are no flags: NonFiniteGradient in the round after it was noticed."""
    sim = Simulation(Scaled(min_numel=1, bucket_mb=1e-4), 3)
    given = {name: [gradient("normal", 50, rank, i) for rank in range(3)] for i, name in enumerate("abc")}
    sim.step(given)
    before = [c.state_dict()["memory"] for c in sim.compressors]
    given["b"][2][7] = np.nan
    assert all(np.isnan(mean).all() for mean in sim.step(given).values())
    for old, compressor in zip(before, sim.compressors, strict=True):
        for name, arrays in compressor.state_dict()["memory"].items():
            np.testing.assert_array_equal(arrays["residual"], old[name]["residual"])
    given["b"][2][7] = 1
    assert all(np.isfinite(mean).all() for mean in sim.step(given).values())
    assert sim.compressors[0].stats()["total"]["skipped_steps"] == 1


def test_later_rounds_start_while_gradients_still_arrive(recorder: Recorder) -> None:
    """When the first round is done everywhere, the next gradient that comes by starts the second."""
    it = Team([Scaled(bucket_mb=1e-6) for _ in range(2)], [(f"p{i}", 50) for i in range(4)])
    it.step([{i: gradient("normal", 50, r, i) for i in range(4)} for r in range(2)])
    recorder.clear()
    for engine in it.engines:
        engine.add(0, gradient("normal", 50, 1))
    assert {post.name for post in recorder.posts} == {"team.bucket0.round0", "team.bucket0.round1"} or {
        post.name for post in recorder.posts
    } == {"team.bucket0.round0"}
    for engine in it.engines:
        engine.add(1, gradient("normal", 50, 2))
    assert sorted({post.name for post in recorder.posts}) == [
        "team.bucket0.round0", "team.bucket0.round1", "team.bucket1.round0", "team.bucket1.round1",
    ]  # fmt: skip
    for engine in it.engines:
        for index in (2, 3):
            engine.add(index, gradient("normal", 50, index))
    it.finish()


def broken(schedule: tuple[Any, ...], exchange: Any) -> Simulation:
    cls = type("Broken", (Compressor,), {"name": "broken", "schedule": schedule, "exchange": exchange})
    return Simulation(cls(min_numel=1), 2)


def too_many(self: Any, bucket: Any) -> Any:
    yield AllReduce(bucket.values)
    yield AllReduce(bucket.values)
    return bucket.values


def too_few(self: Any, bucket: Any) -> Any:
    total = yield AllReduce(bucket.values)
    return total


def none(self: Any, bucket: Any) -> Any:
    return bucket.values
    yield


def no_generator(self: Any, bucket: Any) -> Any:
    return bucket.values


def without_a_header(self: Any, bucket: Any) -> Any:
    yield AllGather(np.zeros(64, np.uint8))


def begins_like_a_header(self: Any, bucket: Any) -> Any:
    yield AllGather(np.full(64, 1, np.uint8))  # of which the first byte is that of a version


def writes_over_the_header(self: Any, bucket: Any) -> Any:
    payload = bucket.payload(64)
    payload[:40] = bucket.values.view(np.uint8)
    yield AllGather(payload)


def returns_nothing(self: Any, bucket: Any) -> Any:
    yield AllReduce(bucket.values)


def wrong_shape(self: Any, bucket: Any) -> Any:
    yield AllReduce(bucket.values)
    return np.zeros(3, np.float32)


def wrong_dtype(self: Any, bucket: Any) -> Any:
    yield AllReduce(bucket.values)
    return np.zeros(bucket.size, np.float64)


def not_a_collective(self: Any, bucket: Any) -> Any:
    yield bucket.values


ONE = (AllReduce,)


@pytest.mark.parametrize(
    ("schedule", "exchange", "message"),
    [
        (ONE, too_many, "Broken.exchange yields more collectives than its schedule has"),
        ((AllReduce, AllReduce), too_few, "Broken.exchange yielded NoneType where its schedule has AllReduce"),
        (ONE, none, "Broken.exchange yielded NoneType where its schedule has AllReduce"),
        (ONE, no_generator, r"Broken.exchange must be a generator, which yields .*; it returned ndarray"),
        ((AllGather,), without_a_header, "Broken.exchange yielded a payload without the common header"),
        ((AllGather,), begins_like_a_header, "Broken.exchange yielded a payload without the common header"),
        ((AllGather,), writes_over_the_header, "Broken.exchange yielded a payload without the common header"),
        ((AllGather,), too_few, "Broken.exchange yielded AllReduce where its schedule has AllGather"),
        ((AllReduce, Broadcast), too_many, "Broken.exchange yielded AllReduce where its schedule has Broadcast"),
        (ONE, not_a_collective, "Broken.exchange yielded ndarray where its schedule has AllReduce"),
        (ONE, returns_nothing, r"Broken.exchange must return the mean, float32 of shape \(10,\), got NoneType"),
        (ONE, wrong_shape, r"Broken.exchange must return the mean, float32 of shape \(10,\), got float32 \(3,\)"),
        (ONE, wrong_dtype, r"Broken.exchange must return the mean, float32 of shape \(10,\), got float64 "),
    ],
)
def test_schedule_violations(schedule: tuple[Any, ...], exchange: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        broken(schedule, exchange).step({"w": [np.ones(10), np.ones(10)]})


def test_exchange_that_is_not_defined() -> None:
    cls = type("Empty", (Compressor,), {"name": "empty", "schedule": ONE})
    with pytest.raises(NotImplementedError, match="Empty does not define exchange"):
        Simulation(cls(min_numel=1), 1).step({"w": [np.ones(10)]})


def test_decoding_too_early() -> None:
    def early(self: Any, bucket: Any) -> Any:
        bucket.decoded[:] = 0
        yield AllReduce(bucket.values)

    with pytest.raises(RuntimeError, match=r"Bucket\.decoded is available after the last collective"):
        broken(ONE, early).step({"w": [np.ones(10)] * 2})


def test_workers_with_different_payload_sizes() -> None:
    def uneven(self: Any, bucket: Any) -> Any:
        yield AllGather(bucket.payload(16 + 8 * bucket.rank))

    with pytest.raises(
        ValueError, match=r"workers 0 and 1 started different collectives as hvd_compress.w.round0: "
    ) as e:
        broken((AllGather,), uneven).step({"w": [np.ones(10)] * 2})
    assert "AllGather(uint8 of shape (16,)), AllGather(uint8 of shape (24,))" in str(e.value)


def test_payloads_of_different_sizes_under_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Horovod puts them one behind the other: all that a rank knows is how much came in all."""

    def gather(self: Any, bucket: Any) -> Any:
        yield AllGather(bucket.payload(16))

    def result(self: SimulatedTransport, handle: str) -> Any:
        return np.zeros(40, np.uint8) if "round0" in handle else take(self, handle)

    take = SimulatedTransport.result
    monkeypatch.setattr(SimulatedTransport, "result", result)
    with pytest.raises(
        ValueError, match=r"the ranks sent payloads of .* sizes: 2 of them 40 bytes in all, this one 16; "
    ):
        broken((AllGather,), gather).step({"w": [np.ones(10)] * 2})


def test_a_compressor_needs_a_schedule() -> None:
    cls = type("Empty", (Compressor,), {"exchange": too_few})
    with pytest.raises(TypeError, match=r"Empty needs a schedule, .*: schedule = \(hvd_compress.AllGather,\), say"):
        cls()


def test_scratch_of_another_type() -> None:
    """A name is one workspace, but its type and length are what was asked for last."""

    def exchange(self: Any, bucket: Any) -> Any:
        assert bucket.scratch("x", 10, np.float32).dtype == np.float32
        assert bucket.scratch("x", 5, np.uint8).dtype == np.uint8
        assert bucket.scratch("x", 50, np.uint8).shape == (50,)
        total = yield AllReduce(bucket.values)
        return total

    broken(ONE, exchange).step({"w": [np.ones(10)] * 2})


def test_keys() -> None:
    """Common keys are the same on every worker and differ by step and bucket; private ones differ by worker too."""
    seen: list[tuple[int, int, str, int, int]] = []

    def exchange(self: Any, bucket: Any) -> Any:
        seen.append((bucket.rank, bucket.step, bucket.name, bucket.key(), bucket.private_key()))
        total = yield AllReduce(bucket.values)
        return total

    sim = broken(ONE, exchange)
    for _ in range(3):
        sim.step({"v": [np.ones(10)] * 2, "w": [np.ones(10)] * 2})
    common = {(step, name): key for _, step, name, key, _ in seen}
    assert all(common[step, name] == key for _, step, name, key, _ in seen)
    assert len(set(common.values())) == len(common)
    assert len({private for *_, private in seen} | set(common.values())) == len(seen) + len(common)


@compressor_dataclass
class TooLate(Compressor):
    """Notices in the last result that a gradient was not finite."""

    name = "too-late"
    schedule = (AllReduce,)
    error_feedback: bool = False

    def exchange(self, bucket: Any) -> Any:
        total = yield AllReduce(bucket.values.copy())
        if not np.isfinite(total).all():
            raise NonFiniteGradient
        return total


def test_not_finite_in_the_last_result() -> None:
    """Without a memory the mean is NaN everywhere; with one it is an error that says what to do."""
    bad = [np.array([1, np.inf], np.float32), np.ones(2, np.float32)]
    mean = Simulation(TooLate(min_numel=1), workers=2).step({"w": bad})["w"]
    assert np.isnan(mean).all()
    huge = [np.full(2, 3e38, np.float32)] * 2  # finite, but not their sum
    with pytest.raises(TypeError, match="raise it after an earlier one"):
        Simulation(TooLate(min_numel=1, error_feedback=True), workers=2).step({"w": huge})


def test_flush_without_a_payload_is_refused() -> None:
    """The request would never arrive."""
    with pytest.raises(NotImplementedError, match="cannot flush"):
        TooLate(error_feedback=True).flush()
