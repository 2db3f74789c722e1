"""An engine that compresses on a thread of its own does what one without does, bit for bit."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from hvd_compress import FFT, Compressor, QSGDMaxNorm, RandKMaxNormMultiScale, SIDCo, TopK
from hvd_compress.exchange import Bucket
from tests.gradients import gradient
from tests.runtime.team import Team

RANKS = 3
SIZES = [("a", 3000), ("b", 900), ("c", 2048), ("d", 5000)]


@pytest.fixture
def threads() -> Iterator[list[Executor]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ThreadPoolExecutor(1, f"worker{rank}")) for rank in range(RANKS)]


def draw(step: int) -> list[dict[int, np.ndarray]]:
    return [{i: gradient("laplace", n, step, r, i) for i, (_, n) in enumerate(SIZES)} for r in range(RANKS)]


def comparable(value: Any) -> Any:
    """Without the arrays, which have no plain equality."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("bucket_mb", [0.005, 0.02, 25.0])
@pytest.mark.parametrize(
    "compressor",
    [TopK(0.05), SIDCo(0.02), FFT(0.1), QSGDMaxNorm(4), RandKMaxNormMultiScale(0.2, (4, 8))],
    ids=lambda c: type(c).__name__,
)
def test_same_bits(compressor: Compressor, bucket_mb: float, threads: list[Executor]) -> None:
    def run(workers: list[Executor] | None) -> tuple[Any, ...]:
        team = Team([dataclasses.replace(compressor, bucket_mb=bucket_mb) for _ in range(RANKS)], SIZES, 0, workers)
        means = []
        for step in range(5):
            gradients = draw(step)
            if step == 2:
                gradients[1][2][7] = np.inf
            if step == 3 and compressor.error_feedback:
                team.engines[2]._core.compressor.flush()
            means.append(comparable(team.step(gradients, [[3, 1, 0, 2], [0, 1, 2, 3], [2, 3, 0, 1]])))
        states = [comparable(engine.state_dict()) for engine in team.engines]
        totals = [engine._core.compressor.runtime.statistics.total for engine in team.engines]
        assert all(total.compress > 0 and total.skipped_steps == 1 for total in totals)
        return means, states, [(total.sent_bytes, total.target, total.selected) for total in totals]

    assert run(None) == run(threads)


def test_the_thread_compresses(threads: list[Executor]) -> None:
    seen: dict[str, set[str]] = {"compress": set(), "decode": set()}

    class Watched(TopK):
        def exchange(self, bucket: Bucket) -> Any:
            inner = super().exchange(bucket)
            seen["compress"].add(threading.current_thread().name.partition("_")[0])
            gathered = yield next(inner)
            seen["decode"].add(threading.current_thread().name.partition("_")[0])
            try:
                inner.send(gathered)
            except StopIteration as stop:
                return stop.value

    team = Team([Watched(0.1)], SIZES, 0, threads[:1])
    team.step(draw(0)[:1])
    team.step(draw(1)[:1])
    assert seen == {"compress": {"worker0"}, "decode": {"MainThread"}}


def test_what_goes_wrong_on_the_thread_is_raised(threads: list[Executor]) -> None:
    class Broken(TopK):
        def exchange(self, bucket: Bucket) -> Any:
            if bucket.step == 1:
                raise ArithmeticError("no")
            return (yield from super().exchange(bucket))

    team = Team([Broken(0.1) for _ in range(RANKS)], SIZES, 0, threads)
    team.engines[1].step = 1
    with pytest.raises(ArithmeticError, match="no"):
        team.step(draw(0))


def test_all_exchanges_have_started_when_the_last_gradient_has_come(threads: list[Executor]) -> None:
    """Of one collective each: then all workers have started as many, however slow their threads are."""
    team = Team([TopK(0.1, bucket_mb=1e-6)], SIZES, 1, threads[:1])
    posted: list[str] = []
    post = team.hub.post
    team.hub.post = lambda name, *rest: (posted.append(name), post(name, *rest))[1]  # type: ignore[method-assign]
    (engine,) = team.engines
    for step in range(3):
        before = len(posted)
        threads[0].submit(time.sleep, 0.1)
        engine.add_uncompressed(4, finite=True)
        for index, given in draw(step)[0].items():
            engine.add(index, given)
        # nothing of the first step starts before all have agreed, which is over on all workers alike
        assert len(posted) - before == (len(SIZES) if step else 0)
        team.finish()
