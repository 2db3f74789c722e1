"""What went over the simulated network."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from hvd_compress.drivers.simulation import Hub
from hvd_compress.exchange import AllGather, Broadcast, Collective, sent_array


class Post(NamedTuple):
    """One worker's part in one collective."""

    name: str
    rank: int
    kind: type[Collective]
    detail: str | int
    """The operation of an all-reduce, the root of a broadcast."""
    array: np.ndarray
    """A copy of what was sent."""
    scope: str
    members: tuple[int, ...]

    @property
    def sent(self) -> int:
        """Bytes that the worker gives away: in a broadcast only the root does."""
        return 0 if self.kind is Broadcast and self.members[self.detail] != self.rank else self.array.nbytes

    @property
    def form(self) -> tuple[object, ...]:
        """Everything that must not depend on the rank or on the data."""
        name = self.name.partition(" of ")[0]
        return name, self.kind, self.detail, self.scope, self.array.dtype, self.array.shape


class Recorder:
    """Wraps the hub: ``posts`` has every collective since the last ``clear``, in the order they were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.posts: list[Post] = []
        original = Hub.post

        def post(hub: Hub, name: str, rank: int, collective: Collective, members: Any = None) -> None:
            detail = getattr(collective, "op", getattr(collective, "root", ""))
            group = range(hub.workers) if members is None else members
            array = sent_array(collective).copy()
            self.posts.append(Post(name, rank, type(collective), detail, array, collective.scope, tuple(group)))
            original(hub, name, rank, collective, members)

        monkeypatch.setattr(Hub, "post", post)

    def clear(self) -> None:
        self.posts.clear()

    def of(self, rank: int) -> list[Post]:
        """The gradient traffic of one worker: without the agreement before the first step and the order after it."""
        around = ("agreement", "order")
        return [post for post in self.posts if post.rank == rank and not post.name.split(".")[-1].startswith(around)]

    def payloads(self, rank: int) -> list[np.ndarray]:
        """What one worker had all-gathered, in order."""
        return [post.array for post in self.of(rank) if post.kind is AllGather]
