"""Engines of several workers that meet in one hub, driven gradient by gradient."""

from collections.abc import Sequence
from concurrent.futures import Executor
from threading import Lock

import numpy as np
import pytest

from hvd_compress import Compressor
from hvd_compress.drivers.simulation import Hub, SimulatedTransport
from hvd_compress.exchange import Collective
from hvd_compress.phased import phases
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.engine import Engine
from hvd_compress.topology import Topology


class LockedHub(Hub):
    """A hub that the engines' worker threads may post to."""

    def __init__(self, workers: int, threads: Sequence[Executor | None]) -> None:
        super().__init__(workers)
        self._lock = Lock()
        self._threads = threads

    def done(self, name: str) -> bool:
        for thread in self._threads:  # what is on its way counts: else `run` takes waiting for it for a deadlock
            if thread is not None:
                thread.submit(int).result()
        return super().done(name)

    def post(self, name: str, rank: int, collective: Collective, members: Sequence[int] | None = None) -> None:
        with self._lock:
            super().post(name, rank, collective, members)

    def take(self, name: str, rank: int) -> np.ndarray:
        with self._lock:
            return super().take(name, rank)


class Team:
    """``parameters`` (name and size) that are compressed, and ``raw`` others that are not, on each of N workers;
    ``workers``: the thread of each engine that compresses."""

    def __init__(
        self,
        compressors: Sequence[Compressor],
        parameters: Sequence[tuple[str, int]],
        raw: int = 0,
        workers: Sequence[Executor | None] | None = None,
    ) -> None:
        self.hub = LockedHub(len(compressors), workers or ())
        topology = phases(compressors[0]).topology(len(compressors), lambda: Topology.single(len(compressors)))
        self.engines = [
            Engine(
                compressor,
                SimulatedTransport(self.hub, rank, topology),
                [Parameter(*parameter) for parameter in parameters],
                "team",
                len(parameters) + raw,
                worker=workers[rank] if workers else None,
            )
            for rank, compressor in enumerate(compressors)
        ]

    def finish(self) -> list[dict[int, np.ndarray]]:
        """Complete the step on all workers; their means by parameter, which must agree."""
        self.hub.run([engine.finishing() for engine in self.engines])
        means = [{index: mean.copy() for index, mean in engine.means.items()} for engine in self.engines]
        for other in means[1:]:
            assert {i: m.tobytes() for i, m in means[0].items()} == {i: m.tobytes() for i, m in other.items()}
        return means

    def abandon(self) -> None:
        """Give the step up on all workers at the same time."""
        for engine in self.engines:
            engine.begin_abandoning()
        self.hub.run([engine.finishing() for engine in self.engines])

    def step(
        self, gradients: Sequence[dict[int, np.ndarray]], orders: Sequence[Sequence[int]] | None = None
    ) -> dict[int, np.ndarray]:
        """One step; ``gradients`` and the orders they arrive in, by rank."""
        for rank, engine in enumerate(self.engines):
            for index in orders[rank] if orders else sorted(gradients[rank]):
                engine.add(index, gradients[rank][index].astype(np.float32))
        return self.finish()[0]


def disagree(compressors: Sequence[Compressor], parameters: Sequence[Sequence[tuple[str, int]]]) -> list[str]:
    """Return the error of each worker when they try to agree on the first step."""
    hub = Hub(len(compressors))
    engines = [
        Engine(compressor, SimulatedTransport(hub, rank), [Parameter(*p) for p in mine], "team", len(mine))
        for rank, (compressor, mine) in enumerate(zip(compressors, parameters, strict=True))
    ]
    messages = []
    for engine in engines:
        with pytest.raises(ValueError, match="rank") as caught:
            list(engine.agreeing())
        messages.append(str(caught.value))
    return messages
