"""How vectors come to the trainer: the choice, and what becomes of messages, on made-up communicators."""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hvd_compress import LGC
from hvd_compress.lgc import route
from hvd_compress.lgc.route import Arrival, Route, choose
from hvd_compress.phased import MPIJob
from tests.simulation import Simulation

JOB = MPIJob((0, 1, 2), "hvd_compress.set0.0")


class Office:
    """Messages of one rank; a letter is under way until somebody says ``deliver``."""

    def __init__(self, boxes: list[deque[tuple[int, np.ndarray]]], rank: int) -> None:
        self.boxes = boxes
        self.rank = rank
        self.stuck = False

    def send(self, content: np.ndarray, to: int) -> Callable[[], bool]:
        self.boxes[to].append((self.rank, content.copy()))
        return lambda: not self.stuck

    def receive(self) -> Arrival | None:
        if not self.boxes[self.rank]:
            return None
        source, content = self.boxes[self.rank].popleft()
        return Arrival(source, content, lambda: not self.stuck)

    def over(self) -> bool:
        return False


def workers(count: int = 3, leader: int = 1) -> tuple[list[Route], list[Office]]:
    boxes: list[deque[tuple[int, np.ndarray]]] = [deque() for _ in range(count)]
    offices = [Office(boxes, rank) for rank in range(count)]
    return [Route(office, rank, count, leader, 0) for rank, office in enumerate(offices)], offices


def vector(rank: int, step: int, length: int = 5) -> np.ndarray:
    return np.full(length, 10 * step + rank, np.float32)


def test_samples_become_complete_out_of_order() -> None:
    routes, _ = workers()
    for step in (3, 2):
        routes[2].send(step, "b", vector(2, step))
    routes[1].keep(2, "b", vector(1, 2), 7, root=2)
    assert routes[1].collect() == []
    routes[0].send(3, "b", vector(0, 3))
    routes[1].keep(3, "b", vector(1, 3), 8, root=0)
    routes[0].send(2, "b", vector(0, 2))
    first, second = routes[1].collect()
    assert [first.name, first.entries, second.name, second.entries] == ["0000002-b", 7, "0000003-b", 8]
    np.testing.assert_array_equal(first.vectors[:, 0], [22, 20, 21])  # the root first
    np.testing.assert_array_equal(second.vectors[:, 0], [30, 31, 32])
    assert routes[1].report()["received"] == 4
    assert routes[0].report()["sent"] == 2


def test_buckets_do_not_mix() -> None:
    routes, _ = workers(2, leader=0)
    for name in ("a", "b"):
        routes[0].keep(1, name, vector(0, 1), 1, root=0)
    routes[1].send(1, "b", vector(1, 1))
    (only,) = routes[0].collect()
    assert only.name == "0000001-b"


def test_what_does_not_become_complete_is_given_up() -> None:
    routes, _ = workers()
    for step in range(20):
        routes[1].keep(step, "b", vector(1, step), 1, root=0)
        routes[0].send(step, "b", vector(0, step))
        assert routes[1].collect() == []
    assert routes[1].report()["incomplete"] == 20 - route.LATE - 1
    assert len(routes[1]._own) == len(routes[1]._others) == route.LATE + 1


def test_vectors_of_different_lengths_are_no_sample() -> None:
    routes, _ = workers(2, leader=0)
    routes[0].keep(1, "b", vector(0, 1), 1, root=0)
    routes[1].send(1, "b", vector(1, 1, length=6))
    assert routes[0].collect() == []
    assert routes[0].report()["incomplete"] == 1


def test_a_worker_whose_messages_are_stuck_drops() -> None:
    routes, offices = workers(2, leader=0)
    offices[1].stuck = True
    sent = [routes[1].send(step, "b", vector(1, step)) for step in range(route.PENDING + 3)]
    assert sent[0] == 16 + 4 * 5
    assert sent[-3:] == [0, 0, 0]
    assert routes[1].report()["dropped"] == 3
    offices[1].stuck = False
    assert routes[1].send(99, "b", vector(1, 99))


def test_a_message_that_takes_its_time() -> None:
    routes, offices = workers(2, leader=0)
    offices[0].stuck = True
    routes[0].keep(1, "b", vector(0, 1), 1, root=0)
    routes[1].send(1, "b", vector(1, 1))
    assert routes[0].collect() == []
    offices[0].stuck = False
    assert len(routes[0].collect()) == 1


def test_when_mpi_is_finalized() -> None:
    routes, offices = workers(2, leader=0)
    for office in offices:
        office.over = lambda: True  # type: ignore[method-assign]
    assert routes[1].send(1, "b", vector(1, 1)) == 0
    assert routes[0].collect() == []
    assert not offices[0].boxes[0]


def mpi(**changed: Any) -> types.SimpleNamespace:
    """Something like mpi4py.MPI."""
    world = types.SimpleNamespace(Get_rank=lambda: changed.get("rank", 1))
    return types.SimpleNamespace(
        Is_initialized=lambda: changed.get("initialized", True),
        Is_finalized=lambda: False,
        Query_thread=lambda: changed.get("thread", 3),
        THREAD_MULTIPLE=3,
        COMM_WORLD=world,
    )


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_mpi4py", mpi)
    assert choose("auto", JOB, 1, 3, False) == ("mpi", "")
    assert choose("mpi", JOB, 1, 3, True) == ("mpi", "")
    assert choose("allgather", JOB, 1, 3, False) == ("allgather", "")
    assert choose("auto", JOB, 1, 3, True) == ("allgather", "")  # inline: so that it can be repeated
    assert choose("auto", None, 1, 3, False) == ("allgather", "")
    assert choose("mpi", None, 0, 1, False) == ("allgather", "")  # alone
    with pytest.raises(ValueError, match="route='mpi' cannot be: this job does not run over MPI"):
        choose("mpi", None, 1, 3, False)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"initialized": False}, "mpi4py uses another MPI than the job"),
        ({"thread": 1}, "MPI was not initialized for several threads"),
        ({"rank": 0}, "ranks are not those of MPI"),
    ],
)
def test_an_mpi_that_is_of_no_use(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], problem: str) -> None:
    monkeypatch.setattr(route, "_mpi4py", lambda: mpi(**changed))
    assert choose("auto", JOB, 1, 3, False) == ("allgather", problem)
    with pytest.raises(ValueError, match=problem):
        choose("mpi", JOB, 1, 3, False)


def test_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert choose("auto", JOB, 1, 3, False) == ("allgather", "mpi4py cannot be imported")


def test_the_argument() -> None:
    with pytest.raises(ValueError, match="route must be one of 'auto', 'mpi', 'allgather', got 'gloo'"):
        LGC(route="gloo")
    assert LGC(route="mpi").to_config() == {"name": "lgc", "route": "mpi"}


def test_the_simulation_has_no_mpi() -> None:
    sim = Simulation(LGC(0.1, min_numel=1, route="mpi"), 2)
    with pytest.raises(ValueError, match="rank 0: route='mpi' cannot be"):
        sim.step({"w": [np.ones(500), np.ones(500)]})
    sim = Simulation(LGC(0.1, min_numel=1), 2)
    sim.step({"w": [np.ones(500), np.ones(500)]})
    assert sim.compressors[0].stats()["lgc"]["route"] == {"by": "the exchange's all-gather"}
