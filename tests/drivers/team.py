"""Engines of several workers that meet in one hub, driven gradient by gradient."""

from collections.abc import Sequence

import numpy as np

from hvd_compress import Compressor
from hvd_compress.drivers.agreement import Parameter
from hvd_compress.drivers.engine import Engine
from hvd_compress.drivers.simulation import Hub, SimulatedTransport


class Team:
    """``parameters`` (name and size) that are compressed, and ``raw`` others that are not, on each of N workers."""

    def __init__(self, compressors: Sequence[Compressor], parameters: Sequence[tuple[str, int]], raw: int = 0) -> None:
        self.hub = Hub(len(compressors))
        self.engines = [
            Engine(
                compressor,
                SimulatedTransport(self.hub, rank),
                [Parameter(*parameter) for parameter in parameters],
                "team",
                len(parameters) + raw,
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

    def step(
        self, gradients: Sequence[dict[int, np.ndarray]], orders: Sequence[Sequence[int]] | None = None
    ) -> dict[int, np.ndarray]:
        """One step; ``gradients`` and the orders they arrive in, by rank."""
        for rank, engine in enumerate(self.engines):
            for index in orders[rank] if orders else sorted(gradients[rank]):
                engine.add(index, gradients[rank][index].astype(np.float32))
        return self.finish()[0]
