"""Steps that do not go as planned: errors, steps that begin and do not end, steps that are discarded."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest

from hvd_compress import DGC, AllGather, Compressor, Dense, RandKMaxNorm, SIDCo, TopK, compressor_dataclass
from hvd_compress.exchange import Bucket
from hvd_compress.state_format import seal
from tests.gradients import gradient
from tests.runtime.team import Team

SIZES = [("a", 300), ("b", 200), ("c", 500)]
REMEMBERING = [TopK(0.05), SIDCo(0.05, stages="adaptive"), DGC(0.05), RandKMaxNorm(0.2, error_feedback=True)]


def draw(step: int, ranks: int = 2, scale: float = 1.0) -> list[dict[int, np.ndarray]]:
    return [{i: scale * gradient("laplace", n, step, r, i) for i, (_, n) in enumerate(SIZES)} for r in range(ranks)]


def team(compressor: Compressor, ranks: int = 2, **changes: Any) -> Team:
    return Team([dataclasses.replace(compressor, bucket_mb=0.002, **changes) for _ in range(ranks)], SIZES)


def states(it: Team) -> list[Any]:
    """All that lasts, apart from the count of steps."""
    found = []
    for engine in it.engines:
        state = engine.state_dict()
        memory = {n: {k: a.tobytes() for k, a in held.items()} for n, held in state["memory"].items()}
        found.append((memory, state["algorithm"]))
    return found


@pytest.mark.parametrize("compressor", REMEMBERING, ids=lambda c: c.name)
@pytest.mark.parametrize("asking", [[0], [1], [0, 1]])
def test_a_discarded_step_gives_its_mean_and_leaves_no_trace(compressor: Compressor, asking: list[int]) -> None:
    it, twin = team(compressor), team(compressor)
    for step in range(2):
        it.step(draw(step))
        twin.step(draw(step))
    before = states(it)
    for rank in asking:
        it.engines[rank]._core.compressor.discard()
    means = it.step(draw(2))
    expected = twin.step(draw(2))
    assert {i: m.tobytes() for i, m in means.items()} == {i: m.tobytes() for i, m in expected.items()}
    assert states(it) == before
    assert states(twin) != before
    it.step(draw(3))  # once, not in every step from then on
    assert states(it) != before


def test_discarding_wins_over_flushing() -> None:
    """What is to be flushed is flushed by the next step that counts."""
    it = team(TopK(0.05))
    it.step(draw(0))
    before = states(it)
    it.engines[0]._core.compressor.flush()
    it.engines[0]._core.compressor.discard()
    it.step(draw(1))
    assert states(it) == before
    it.step(draw(2))
    assert not any(any(array) for memory, _ in states(it) for held in memory.values() for array in held.values())


def test_discard_without_a_way_to_tell() -> None:
    @compressor_dataclass
    class Mute(Dense):
        name = "mute"
        error_feedback: bool = True  # type: ignore[misc]

    with pytest.raises(NotImplementedError, match="cannot discard a step"):
        Mute().discard()
    Dense().discard()  # nothing is remembered, so nothing comes back


@pytest.mark.parametrize("compressor", REMEMBERING, ids=lambda c: c.name)
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later"])
@pytest.mark.parametrize("arrived", [1, 2, 3])
def test_a_step_that_all_ranks_abandon(compressor: Compressor, first: bool, arrived: int) -> None:
    """It leaves no trace, and training goes on."""
    it = team(compressor)
    if not first:
        it.step(draw(0))
        before = states(it)
    for rank, engine in enumerate(it.engines):
        for index in range(arrived):
            engine.add(index, draw(1)[rank][index].astype(np.float32) * 1000)
    it.abandon()
    if first:
        assert not any(any(a) for memory, _ in states(it) for held in memory.values() for a in held.values())
    else:
        assert states(it) == before
    assert [engine.busy for engine in it.engines] == [False, False]
    means = it.step(draw(2))
    assert all(np.isfinite(mean).all() for mean in means.values())


def test_a_step_that_one_rank_abandons_is_skipped_by_the_others() -> None:
    """The others wait for the gradients that did not come; they get them, and are told."""
    it = team(TopK(0.05))
    it.step(draw(0))
    before = states(it)
    left, right = it.engines
    for index in range(3):
        left.add(index, draw(1)[0][index])
    right.add(0, draw(1)[1][0])
    right._overflow = right._abandoned = True
    it.hub.run([left.finishing(), right.finishing()])
    assert left.skipped
    assert states(it) == before


@pytest.mark.parametrize("where", ["launch", "decode"])
def test_an_error_names_its_cause_in_the_next_step(where: str) -> None:
    @compressor_dataclass
    class Breaks(TopK):
        name = "breaks"

        def exchange(self, bucket: Bucket) -> Any:
            inner = super().exchange(bucket)
            if bucket.step == 1 and where == "launch":
                raise ArithmeticError("no luck")
            gathered = yield next(inner)
            if bucket.step == 1:
                raise ArithmeticError("no luck")
            try:
                inner.send(gathered)
            except StopIteration as stop:
                return stop.value

    it = team(Breaks(0.05))
    it.step(draw(0))
    before = states(it)
    with pytest.raises(ArithmeticError, match="no luck"):
        it.step(draw(1))
    assert not it.engines[0].busy
    if where == "launch":
        assert states(it)[0] == before[0]
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"did not come to its end: ArithmeticError: no luck.*make a new compres"
        ):
            it.engines[0].add(0, draw(2)[0][0])
    again = Breaks(0.05)
    again.load_state_dict(seal(it.engines[0].state_dict()))  # as the message says
    assert again.state_dict()["step"] == it.engines[0].state_dict()["step"]


def test_rescaling() -> None:
    """Gradients of another unit, by a power of two: the same training, to the bit."""
    it, scaled = team(DGC(0.05)), team(DGC(0.05))
    it.step(draw(0))
    scaled.step(draw(0))
    for engine in scaled.engines:
        engine.rescale(0.25)
    means, quarter = it.step(draw(1)), scaled.step(draw(1, scale=0.25))
    for index, mean in means.items():
        np.testing.assert_array_equal(mean, 4 * quarter[index])


@pytest.mark.parametrize("kernels", ["host", "reference"])
def test_means_stay_what_they_are_while_somebody_has_them(use_kernels: Any, kernels: str) -> None:
    use_kernels(kernels)
    it = team(TopK(0.05))
    kept = []
    for step in range(4):
        it.step(draw(step))
        views = dict(it.engines[0].means)
        kept.append((views, {index: mean.copy() for index, mean in views.items()}))
    for views, copies in kept:
        for index, mean in views.items():
            np.testing.assert_array_equal(mean, copies[index])


def test_buffers_are_used_again_when_nobody_has_them() -> None:
    """Where the next gradient accumulates in the last mean, three buffers take turns: no new memory in any step."""
    it = team(TopK(0.05))
    it.step(draw(0))
    it.step(draw(1))
    addresses: set[int] = set()
    for step in range(2, 14):
        given = draw(step)
        engine = it.engines[0]
        for index in range(3):
            own = engine.means.get(index)
            if own is not None:
                own[:] = given[0][index]
                given[0][index] = own
        pieces = given[0]
        del own
        for index in range(3):
            engine.add(index, pieces[index].astype(np.float32, copy=False))
            it.engines[1].add(index, given[1][index])
        del pieces, given
        it.finish()
        addresses |= {buffer.ctypes.data for buffer in engine.buffers}
    assert len(addresses) <= 3 * len(it.engines[0].buffers)


def test_a_state_without_a_layout() -> None:
    """It has no layout, so that its parameters are buckets of their own: they are copied and rescaled too."""
    it = team(TopK(0.05))
    it.step(draw(0))
    saved = [seal(engine.state_dict() | {"layout": [], "steps": [], "algorithm": []}) for engine in it.engines]
    compressors = [TopK(0.05) for _ in saved]
    for compressor, state in zip(compressors, saved, strict=True):
        compressor.load_state_dict(state)
    engine = Team(compressors, SIZES).engines[0]
    engine.rescale(0.25)
    for name, arrays in saved[0]["memory"].items():
        found = engine.state_dict()["memory"][name]["residual"]
        np.testing.assert_array_equal(found, arrays["residual"] / 4)
        found[:] = np.nan
        np.testing.assert_array_equal(engine.state_dict()["memory"][name]["residual"], arrays["residual"] / 4)


def test_a_mean_that_lies_in_a_workspace_is_copied() -> None:
    """A third party's exchange may return whatever it likes."""

    @compressor_dataclass
    class Careless(Compressor):
        name = "careless"
        schedule = (AllGather,)

        def exchange(self, bucket: Bucket) -> Any:
            values = bucket.values
            payload = bucket.payload(16 + values.nbytes)
            payload[16:] = values.view(np.uint8)
            gathered = yield AllGather(payload)
            mean = bucket.scratch("mean", bucket.size, np.float32)
            np.mean(gathered[:, 16:].copy().view(np.float32), axis=0, out=mean)
            return mean

    it = team(Careless())
    it.step(draw(0))
    views = dict(it.engines[0].means)
    copies = {index: mean.copy() for index, mean in views.items()}
    it.step(draw(1))
    for index, mean in views.items():
        np.testing.assert_array_equal(mean, copies[index])


def test_what_would_be_remembered_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    """An algorithm that leaves NaN in its values: before the last payload everybody skips the step; after it, this
    worker forgets them."""

    @compressor_dataclass
    class Spoils(TopK):
        name = "spoils"
        late: bool = False

        def exchange(self, bucket: Bucket) -> Any:
            inner = super().exchange(bucket)
            sent = next(inner)
            if bucket.step == 1 and bucket.rank == 1 and not self.late:
                bucket.values[3] = np.nan
            gathered = yield sent
            if bucket.step == 1 and bucket.rank == 1 and self.late:
                bucket.values[3] = np.nan
            try:
                inner.send(gathered)
            except StopIteration as stop:
                return stop.value

    for late in (False, True):
        it = team(Spoils(0.05, late=late))
        it.step(draw(0))
        it.step(draw(1))
        assert it.engines[0].skipped is not late
        it.step(draw(2))
        assert not it.engines[0].skipped
        for engine in it.engines:
            for held in engine.state_dict()["memory"].values():
                assert np.isfinite(held["residual"]).all()


@pytest.mark.parametrize(("nonfinite", "expected"), [("skip", np.nan), ("nan", np.nan), ("zero", 0.0)])
def test_what_a_step_gives_that_is_not_finite(nonfinite: str, expected: float) -> None:
    it = team(TopK(0.05), nonfinite=nonfinite)
    it.step(draw(0))
    before = states(it)
    given = draw(1)
    given[1][2][5] = np.inf
    for mean in it.step(given).values():
        np.testing.assert_array_equal(mean, np.full_like(mean, expected))
    assert states(it) == before


def test_the_step_is_not_lost_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hvd_compress"):
        test_what_would_be_remembered_is_checked(caplog)
    assert "would have been remembered as infinite or NaN" in caplog.text
