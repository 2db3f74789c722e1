"""What the trainer learns does not depend on the order in which the buckets' exchanges come to their end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hvd_compress import LGC
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.supervisor import Supervisor
from hvd_compress.lgc.training import Sample
from tests.gradients import gradient
from tests.runtime.team import Team

SIZES = {"a": 3000, "b": 3400, "c": 3200}


def run(orders: list[list[int]], steps: int) -> tuple[list[list[str]], Any]:
    """The order in which the buckets of each step came to their end, and the leader's state."""
    learned = LGC(
        0.1, "allreduce", dense_steps=1, train_steps=50, dense=[], topk_only=[], encoder=(4, 4, 2), decoder=(4, 4),
        bucket_mb=0.001, min_numel=1, trainer="inline", floor=False,
    )  # fmt: skip
    compressors = [learned, LGC(**{name: getattr(learned, name) for name in learned.parameters()})]
    team = Team(compressors, list(SIZES.items()))
    arrived: list[list[str]] = []
    supervisor = compressors[0].learning.supervisor
    take = supervisor.take

    def note(sample: Sample) -> None:
        arrived[-1].append(sample.bucket)
        take(sample)

    supervisor.take = note  # type: ignore[method-assign]
    for step in range(steps):
        arrived.append([])
        given = [
            {i: gradient("laplace", size, step, i) + gradient("laplace", size, step, i, rank + 1)
             for i, size in enumerate(SIZES.values())}
            for rank in range(2)
        ]  # fmt: skip
        team.step(given, [orders[step % len(orders)]] * 2 if step > 2 else None)
    return arrived, compressors[0].shared_state()


def test_buckets_that_end_in_another_order() -> None:
    orders, weights = zip(run([[0, 1, 2]], 14), run([[2, 0, 1], [1, 2, 0]], 14), strict=True)
    assert orders[0] != orders[1]
    assert [sorted(step) for step in orders[0]] == [sorted(step) for step in orders[1]]
    assert all(len(step) == 3 for step in orders[0][1:])
    assert weights[0]["trainer"]
    assert weights[0] == weights[1]


class Fed:
    """A trainer that notes what it gets."""

    kind = "noted"

    def __init__(self) -> None:
        self.samples: list[float] = []

    def feed(self, vectors: np.ndarray, entries: int) -> None:
        self.samples.append(float(vectors[0, 0]))

    def close(self) -> None: ...


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_samples_are_fed_by_step_and_bucket(order: tuple[int, ...]) -> None:
    """When their step is over: another one has begun, or somebody asks for the state."""
    supervisor = Supervisor(Architecture(), 0, 0.1, True, None)
    supervisor.training = fed = Fed()  # type: ignore[assignment]
    for step in (5, 6):
        for bucket in order:
            sample = Sample(step, f"bucket{bucket}", np.full((2, 3), 10.0 * step + bucket, np.float32), 1)
            supervisor.take(sample)
            assert len(fed.samples) == 3 * (step - 5)
    supervisor.feed_before(6)
    assert fed.samples == [50, 51, 52]
    supervisor.feed_before(7)
    assert fed.samples == [50, 51, 52, 60, 61, 62]
