"""When buckets start: the rule by itself, and an engine that follows it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import TopK
from hvd_compress.runtime.schedule import startable
from tests.runtime.team import Team

PARAMETERS, UNCOMPRESSED, SIZE = 5, 2, 100
PAIR_MB = 2 * 4 * SIZE / 2**20
"""Two parameters fill a bucket."""


@pytest.mark.parametrize(
    ("complete", "started", "buckets", "all_arrived", "expected"),
    [
        (0, 0, 3, False, 0),
        (1, 0, 3, False, 1),
        (2, 1, 3, False, 1),  # the other one would be the last
        (1, 2, 3, False, 0),
        (1, 2, 3, True, 1),
        (1, 0, 1, False, 0),
        (0, 3, 3, True, 0),
        (0, 0, 0, False, 0),  # nothing is compressed
        (1, 0, None, False, 0),  # in the first step any might be the last
        (1, 7, None, False, 0),
        (3, 0, None, False, 2),
        (3, 0, None, True, 3),
    ],
)
def test_what_may_start(complete: int, started: int, buckets: int | None, all_arrived: bool, expected: int) -> None:
    assert startable(complete, started, buckets, all_arrived) == expected


@given(data=st.data())
def test_an_engine_follows_it(data: Any) -> None:
    """Gradients in any order, those outside the buckets too: after each of them as many exchanges have started as the
    rule says."""
    team = Team([TopK(0.1, bucket_mb=PAIR_MB)], [(f"p{i}", SIZE) for i in range(PARAMETERS)], raw=UNCOMPRESSED)
    (engine,) = team.engines
    team.hub.run([engine.agreeing()])  # before that nothing starts
    posted: list[str] = []
    post = team.hub.post
    team.hub.post = lambda name, *rest: (posted.append(name), post(name, *rest))[1]  # type: ignore[method-assign]
    layout = [[index] for index in range(PARAMETERS)]
    order: list[int] = []
    for buckets in (None, 3):
        before = len(posted)
        missing, complete, started = [set(members) for members in layout], 0, 0
        order = data.draw(st.permutations(range(PARAMETERS + UNCOMPRESSED)))
        for arrived, index in enumerate(order, 1):
            if index < PARAMETERS:
                engine.add(index, np.ones(SIZE, np.float32))
                for members in missing:
                    if index in members:
                        members.remove(index)
                        complete += not members
            else:
                engine.add_uncompressed(4, finite=True)
            starting = startable(complete, started, buckets, arrived == len(order))
            complete, started = complete - starting, started + starting
            assert len(posted) - before == started
        team.finish()
        if buckets is None:
            compressed = [index for index in order if index < PARAMETERS]
            layout = [compressed[:2], compressed[2:4], compressed[4:]]
