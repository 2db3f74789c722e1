"""The order of work between streams: what waits for what, told by a fake that writes it down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hvd_compress.drivers.torch import streams  # noqa: E402
from hvd_compress.drivers.torch.streams import DeviceStream, OrderedExecutor  # noqa: E402

GRADIENT = torch.ones(3)


class Told:
    """CUDA's streams, of which every thread has one that is current; ``log`` is what was asked of them."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.captures = False
        self._current = threading.local()

    def new(self) -> str:
        return "own"

    def current(self) -> str:
        return getattr(self._current, "stream", threading.current_thread().name)

    def default(self) -> str:
        return "default"

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before = self.current()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def event(self, stream: str) -> tuple[str, int]:
        event = stream, len(self.log)
        self.log.append(("event", *event))
        return event

    def wait(self, stream: str, event: tuple[str, int]) -> None:
        self.log.append(("wait", stream, *event))

    def use(self, tensor: torch.Tensor, stream: str) -> None:
        self.log.append(("use", id(tensor), stream))

    def capturing(self) -> bool:
        return self.captures


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(streams, "streams_of", lambda device: told)
    return told


def test_the_worker_waits_for_the_gradients_and_nobody_else_does(told: Told) -> None:
    stream = DeviceStream(torch.device("cpu"))
    main = told.current()
    with OrderedExecutor(stream, "worker") as worker:
        stream.take(GRADIENT)
        stream.note()
        with stream.allocating():
            assert told.current() == "own"
            where = worker.submit(told.current)
        assert told.current() == main
        assert where.result() == "own"
        assert worker.submit(told.current).result() == "own"
    gradient, other, at_submit, later = (entry for entry in told.log if entry[0] == "event")
    assert gradient[1] == other[1] == later[1] == main
    assert ("use", id(GRADIENT), "own") in told.log
    waits = [entry for entry in told.log if entry[0] == "wait"]
    assert waits == [("wait", "own", *event[1:]) for event in (gradient, other, at_submit, later)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_optimizer_waits_for_the_means(told: Told, fails: bool) -> None:
    stream, main = DeviceStream(torch.device("cpu")), told.current()
    stream.take(GRADIENT)
    try:
        with stream.working():
            assert told.current() == "own"
            told.log.append(("work",))
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    stream.hand_back([GRADIENT])
    kinds = [(entry[0], *entry[1:2]) for entry in told.log]
    before, after = told.log[: kinds.index(("work",))], told.log[kinds.index(("work",)) + 1 :]
    assert [entry[:2] for entry in before] == [
        ("event", main),
        ("use", id(GRADIENT)),
        ("event", main),
        ("wait", "own"),
        ("wait", "own"),
    ]
    assert [entry[:3] for entry in after] == [
        ("event", "own", after[0][2]),
        ("wait", main, "own"),
        ("use", id(GRADIENT), main),
    ]


def test_a_collectives_result_is_waited_for_on_the_default_stream(told: Told) -> None:
    stream = DeviceStream(torch.device("cpu"))
    with stream.allocating():
        stream.after_horovod(GRADIENT)
    assert [entry[:3] for entry in told.log] == [
        ("event", "default", 0),
        ("wait", "own", "default"),
        ("use", id(GRADIENT), "own"),  # Horovod has allocated it on another
    ]


def test_graph_capture_is_refused(told: Told) -> None:
    stream = DeviceStream(torch.device("cpu"))
    told.captures = True
    for note in (stream.note, lambda: stream.take(GRADIENT), stream.refuse_capture):
        with pytest.raises(RuntimeError, match=r"while a CUDA graph is captured.*Leave backward"):
            note()
    assert told.log == []


def test_where_all_is_in_order_nothing_is_waited_for() -> None:
    stream = DeviceStream(torch.device("cpu"))
    stream.take(GRADIENT)
    with OrderedExecutor(stream, "worker") as worker:
        assert worker.submit(lambda x, y: x + y, 1, y=2).result() == 3
    with stream.working():
        stream.after_horovod(GRADIENT)
    stream.hand_back([GRADIENT])
