"""Buckets, order of arrival, agreement: what the engine does around the exchanges."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import LGC, CorruptPayload, SIDCo, Steps, TopK
from hvd_compress.drivers.simulation import Hub, SimulatedTransport
from hvd_compress.runtime.bucketing import Parameter, plan_buckets
from hvd_compress.runtime.engine import Engine
from hvd_compress.state_format import seal
from tests.gradients import gradient
from tests.recording import Recorder
from tests.runtime.team import Team, disagree
from tests.simulation import change_broadcasts

MIB = 2**20 // 4


def sizes(*numbers: int) -> list[Parameter]:
    return [Parameter(f"p{i}", number) for i, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("order", "numbers", "bucket_mb", "expected"),
    [
        ([], [], 1, []),
        ([0], [5], 1, [[0]]),
        ([0, 1], [MIB // 2, MIB // 2], 1, [[0, 1]]),
        ([0, 1], [MIB // 2, MIB // 2 + 1], 1, [[0], [1]]),
        ([0, 1, 2], [1, MIB, 1], 1, [[0], [1], [2]]),
        ([0, 1, 2], [1, 5 * MIB, 1], 1, [[0], [1], [2]]),
        ([2, 0, 1], [10, 10, 10], 80 / 2**20, [[2, 0], [1]]),
        ([0, 1, 2], [10, 10, 10], 1e-9, [[0], [1], [2]]),
        ([0, 1], [MIB, MIB], 25.0, [[0, 1]]),
        ([1, 0], [MIB, MIB], math.inf, [[1, 0]]),
        ([3, 2, 1, 0], [MIB, MIB, MIB, 13 * MIB], 25.0, [[3], [2, 1, 0]]),
        ([3, 2, 1, 0], [MIB, MIB, MIB, 9 * MIB], 25.0, [[3, 2, 1, 0]]),
        ([3, 2, 1, 0], [4 * MIB, 1, 1, 20 * MIB], 25.0, [[3, 2, 1, 0]]),
        ([3, 2, 1, 0], [2 * MIB, 2 * MIB, 8 * MIB, 20 * MIB], 25.0, [[3], [2, 1, 0]]),
        ([3, 2, 1, 0], [2 * MIB, 2 * MIB, 9 * MIB, 20 * MIB], 25.0, [[3], [2, 1], [0]]),
    ],
)
def test_plan(order: list[int], numbers: list[int], bucket_mb: float, expected: list[list[int]]) -> None:
    assert plan_buckets(order, sizes(*numbers), bucket_mb) == expected


def test_a_bucket_has_parameters_of_one_kind() -> None:
    parameters, kinds = sizes(10, 10, 10, 10, 10), ["a", "b", "b", "a", "b"]
    assert plan_buckets(range(5), parameters, 1.0, kinds) == [[0, 3], [1, 2, 4]]
    assert plan_buckets(range(5), parameters, 20 * 4 / 2**20, kinds) == [[0, 3], [1, 2], [4]]
    assert plan_buckets(range(5), sizes(10, 90, 1, 10, 1), 100 * 4 / 2**20, kinds) == [[0, 3], [1], [2, 4]]
    assert plan_buckets([4, 3, 2, 1, 0], parameters, 1.0, kinds) == [[4, 2, 1], [3, 0]]


@given(numbers=st.lists(st.integers(1, 300), max_size=30), room=st.integers(1, 500), data=st.data())
def test_plan_keeps_the_order_and_the_limit(numbers: list[int], room: int, data: Any) -> None:
    order = data.draw(st.permutations(range(len(numbers))))
    layout = plan_buckets(order, sizes(*numbers), room * 4 / 2**20)
    assert [index for members in layout for index in members] == order
    filled = [sum(numbers[index] for index in members) for members in layout]
    assert all(members for members in layout)
    assert all(total <= room or len(members) == 1 for total, members in zip(filled, layout, strict=True))
    if len(layout) > 1 and filled[-1] <= room / 8 and 2 * (filled[-2] + filled[-1]) > room >= filled[-2] + filled[-1]:
        assert filled[-1] + numbers[layout[-2][-1]] > room / 8, "the one before would have fitted into an eighth"
        layout[-2:], filled[-2:] = [[*layout[-2], *layout[-1]]], [filled[-2] + filled[-1]]
    for total, following in zip(filled, layout[1:], strict=False):
        assert total + numbers[following[0]] > room, "the next one would have fitted"


def team(workers: int = 2, parameters: int = 3, raw: int = 0, size: int = 100, **arguments: Any) -> Team:
    compressor = TopK(0.1, **arguments)
    return Team(
        [dataclasses.replace(compressor) for _ in range(workers)],
        [(f"p{i}", size + i) for i in range(parameters)],
        raw=raw,
    )


def draw(step: int, workers: int = 2, parameters: int = 3, size: int = 100) -> list[dict[int, np.ndarray]]:
    return [{i: gradient("laplace", size + i, step, r, i) for i in range(parameters)} for r in range(workers)]


def layouts(team: Team) -> list[list[list[str]]]:
    return [engine.state_dict()["layout"] for engine in team.engines]


def test_everybody_takes_rank_0_s_order() -> None:
    it = team(workers=3)
    it.step(draw(0, 3), orders=[[2, 0, 1], [0, 1, 2], [1, 2, 0]])
    assert layouts(it) == [[["p2", "p0", "p1"]]] * 3


@pytest.mark.parametrize("bucket_mb", [1e-4, 0.0008, 25.0])
def test_order_of_arrival_changes_nothing_after_the_first_step(bucket_mb: float) -> None:
    left, right = team(bucket_mb=bucket_mb), team(bucket_mb=bucket_mb)
    for step in range(4):
        orders = [[0, 1, 2], [0, 1, 2]] if step == 0 else [[2, 1, 0], [1, 0, 2]]
        a, b = left.step(draw(step)), right.step(draw(step), orders)
        assert {i: m.tobytes() for i, m in a.items()} == {i: m.tobytes() for i, m in b.items()}


def test_a_new_worker_whose_first_gradients_lie_as_the_others_buckets_do() -> None:
    """Every parameter is a bucket then as in any first step, but of another name, by which workers meet."""
    it = team(bucket_mb=1e-6)
    for step in range(2):
        it.step(draw(step))
    assert [engine._filling.layout for engine in it.engines] == [[[0], [1], [2]]] * 2
    it.hub = Hub(3)
    for rank, engine in enumerate(it.engines):
        engine.enter_world(SimulatedTransport(it.hub, rank), "team")
    parameters = sizes(100, 101, 102)
    it.engines.append(Engine(TopK(0.1, bucket_mb=1e-6), SimulatedTransport(it.hub, 2), parameters, "team", 3))
    it.step(draw(2, 3))
    assert layouts(it) == [[[parameter.name] for parameter in parameters]] * 3


def test_an_exchange_starts_as_soon_as_its_bucket_is_full(recorder: Recorder) -> None:
    """All but the last: that one waits for everything, so that it can say what went wrong elsewhere."""
    it = team(workers=1, raw=1, bucket_mb=1e-6)
    engine = it.engines[0]
    for step in range(2):
        given = draw(step, 1)[0]
        engine.add_uncompressed(4, True)
        started = []
        for index in (1, 0, 2):
            recorder.clear()
            engine.add(index, given[index])
            started.append([post.name.split(".")[1] for post in recorder.of(0)])
        it.finish()
        names = ["p1", "p0", "p2"] if step == 0 else ["bucket0", "bucket1", "bucket2"]
        if step == 0:  # the workers have not agreed yet
            assert started == [[], [], []]
        else:
            assert started == [names[:1], names[1:2], names[2:]]


def test_parameter_missing_in_one_step() -> None:
    """Its gradient counts as zero: what it holds back goes on being sent."""
    it, whole = team(), team()
    for step in range(4):
        given = draw(step)
        missing = [{i: g for i, g in mine.items() if i != 1 or step != 2} for mine in given]
        zero = [{i: g * (0 if i == 1 and step == 2 else 1) for i, g in mine.items()} for mine in given]
        a, b = it.step(missing), whole.step(zero)
        assert {i: m.tobytes() for i, m in a.items()} == {i: m.tobytes() for i, m in b.items()}


def test_parameter_that_comes_later() -> None:
    """Not in the first step (a frozen layer): it becomes a bucket of its own, and stays one."""
    it = team(parameters=3)
    first = [{i: g for i, g in mine.items() if i != 2} for mine in draw(0)]
    assert set(it.step(first)) == {0, 1}
    for step in (1, 2):
        assert set(it.step(draw(step))) == {0, 1, 2}
    assert layouts(it) == [[["p0", "p1"], ["p2"]]] * 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bucket_mb", [1e-6, 25.0])
def test_gradient_that_comes_twice(fused: bool, bucket_mb: float) -> None:
    it = team(workers=1, bucket_mb=bucket_mb)
    if fused:
        it.step(draw(0, 1))
    it.engines[0].add(1, np.ones(101, np.float32))
    it.engines[0].add(0, np.ones(100, np.float32))
    for again in (0, 1):
        with pytest.raises(RuntimeError, match=f"the gradient of 'p{again}' came twice in one step"):
            it.engines[0].add(again, np.ones(100 + again, np.float32))


def test_state_only_between_steps() -> None:
    it = team(workers=1)
    it.engines[0].add(0, np.ones(100, np.float32))
    with pytest.raises(RuntimeError, match="between steps"):
        it.engines[0].state_dict()


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("fused", [False, True], ids=["first step", "later"])
@pytest.mark.parametrize("bucket_mb", [1e-6, 25.0])
def test_raw_gradient_that_is_not_finite(position: int, fused: bool, bucket_mb: float) -> None:
    """A bias on one worker, before, between and after the compressed ones: nobody's memory takes part in the step."""
    it = team(workers=2, raw=1, bucket_mb=bucket_mb)
    before: Any = None
    for step in range(3):
        bad = step == (1 if fused else 0)
        if bad and step:
            before = [engine.state_dict()["memory"] for engine in it.engines]
        for rank, engine in enumerate(it.engines):
            for arrival in range(4):
                if arrival == position:
                    engine.add_uncompressed(4, not (bad and rank == 1))
                else:
                    index = arrival - (arrival > position)
                    engine.add(index, draw(step)[rank][index])
        means = it.finish()[0]
        assert all(np.isnan(m).all() if bad else np.isfinite(m).all() for m in means.values())
        if bad:
            for rank, engine in enumerate(it.engines):
                for name, arrays in engine.state_dict()["memory"].items():
                    expected = before[rank][name]["residual"] if before else np.zeros_like(arrays["residual"])
                    np.testing.assert_array_equal(arrays["residual"], expected)


def test_nothing_is_compressed() -> None:
    """All parameters are left to the framework: what a worker knows of the step, the others know all the same."""
    it = team(parameters=0, raw=2)
    for step in range(4):
        if step == 2:
            it.engines[0]._core.compressor.discard()
        for rank, engine in enumerate(it.engines):
            engine.add_uncompressed(4, True)
            if rank == 0 or step < 3:  # in the last step, one has none on a worker
                engine.add_uncompressed(4, step != 1 or rank == 0)
        it.finish()
        said = [(engine.told, engine.skipped, engine.discarded, engine.state_dict()["step"]) for engine in it.engines]
        assert said == [(True, step == 1, step == 2, step + 1)] * 2
    state = it.engines[0].state_dict()
    it.engines[0].restore(state)
    assert it.engines[0].state_dict() == state


SAME = [("p0", 100), ("p1", 200)]
LONG = [0.1] * 400


@pytest.mark.parametrize(
    ("compressors", "parameters", "said"),
    [
        ([TopK(0.1), TopK(0.2)], [SAME, SAME], ["compressor", "rank 1", "0.2", "same arguments"]),
        ([TopK(0.1), SIDCo(0.1)], [SAME, SAME], ["compressor", "sidco", "same arguments"]),
        ([TopK(), TopK(seed=3)], [SAME, SAME], ["compressor", "topk(seed=0)", "topk(seed=3)"]),
        ([TopK(), TopK(), TopK(bucket_mb=1)], [SAME] * 3, ["compressor", "rank 2", "bucket_mb"]),
        ([TopK(Steps((r, *LONG), tuple(range(1, 401)))) for r in (0.5, 0.6)], [SAME, SAME], ["0.5", "0.6", "sha256"]),
        ([TopK(Steps((*LONG, r), tuple(range(1, 401)))) for r in (0.5, 0.6)], [SAME, SAME], ["compressor", "sha256"]),
        ([TopK(), TopK()], [SAME, SAME[:1]], ["parameters", "rank 0 has 2, rank 1 has 1"]),
        ([TopK(), TopK()], [SAME, SAME[::-1]], ["parameters", "in the same order"]),
        ([TopK(), TopK()], [SAME, [("p0", 100), ("p1", 201)]], ["parameters"]),
        ([TopK(), TopK()], [SAME, [("p0", 100), ("q1", 200)]], ["parameters"]),
    ],
)
def test_disagreement(compressors: list[Any], parameters: list[list[tuple[str, int]]], said: list[str]) -> None:
    """Every rank gets the same message, which says who differs in what and what to do."""
    messages = disagree(compressors, parameters)
    assert len(set(messages)) == 1
    assert "ranks disagree on the" in messages[0]
    for words in said:
        assert words in messages[0]


@pytest.mark.parametrize("letter", ["層", "\U0001f600", "\x00", "\udcff"])
def test_long_and_foreign_words_fit_into_the_record(letter: str) -> None:
    """A message of any length in any script arrives, beside a configuration of any length."""
    changes = {"workers": 2, "step": 1, "memory": {letter * 5000: {}}, "shared": LGC(0.1).shared_state()}
    state = seal({**LGC(0.1).state_dict(), **changes})
    compressors = [LGC(0.1, dense=[letter * 5000]), LGC(0.1, dense=[letter * 5000])]
    compressors[1].load_state_dict(state)
    messages = disagree(compressors, [SAME, SAME])
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"rank 1: the saved state has parameters this model does not compress: {letter}")


def test_agreement_is_checked_before_any_result_is_used() -> None:
    it = Team([TopK(0.1), TopK(0.1, seed=1)], [("p", 3000)])
    with pytest.raises(ValueError, match="ranks disagree"):
        it.step([{0: np.ones(3000)}, {0: np.ones(3000)}])
    assert it.engines[0].step == 0


def test_an_order_of_parameters_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(order: np.ndarray) -> None:
        order[0] = 1000

    change_broadcasts(monkeypatch, ".order", change)
    team = Team([TopK(0.1, min_numel=1) for _ in range(2)], [("a", 40), ("b", 50)])
    with pytest.raises(CorruptPayload, match="rank 0 compresses parameter 1000, counted from 0, of 2"):
        team.step([{0: gradient("laplace", 40, 0, rank), 1: gradient("laplace", 50, 0, rank)} for rank in range(2)])
