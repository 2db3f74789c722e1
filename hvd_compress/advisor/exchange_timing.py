"""One worker's exchange in this process, for timing: inputs that can be restored, and collectives answered at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather, AllToAll, Bucket, Collective, Exchange, ReduceScatter, sent_array
from hvd_compress.kernels import Float32, Kernels, get
from hvd_compress.memory import Residual


class Restorable(Protocol):
    """Something that is timed on ``Inputs``."""

    @property
    def residual(self) -> Float32 | None:
        """The memory that it changes, which is restored before every call."""

    @property
    def others(self) -> Sequence[np.ndarray[Any, Any]]:
        """The other arrays that it reads or writes, which are made as warm as the residual."""


TAIL = 1024
"""Elements at the end of the inputs, at most, that are zero, so that nothing of them is sent. The workers of a
``TimedExchange`` all give what one of them has, and if each owns a region of the bucket, that must be at places which
all regions have: they differ by their last lines."""


class Inputs:
    """A gradient and a residual of n Laplace-distributed elements, which can be restored.

    They are where the kernels run: ``advisor.device_timing`` has some on a GPU.
    """

    def __init__(self, n: int, kernels: Kernels | None = None) -> None:
        self.n = n
        self.kernels = kernels = kernels or get()
        generator = np.random.default_rng(0)
        self.original_gradient, self.original_residual = (
            generator.laplace(size=n, scale=scale).astype(np.float32) for scale in (1.0, 0.5)
        )
        for array in (self.original_gradient, self.original_residual):
            array[n - min(TAIL, n // 8) :] = 0
        self.gradient, self._restored_gradient, self._restored_residual = (kernels.empty(n) for _ in range(3))
        kernels.put(self._restored_gradient, self.original_gradient)
        kernels.put(self._restored_residual, self.original_residual)
        self.gradient[:] = self._restored_gradient
        self.memory = Residual(kernels, n)
        self.out = kernels.empty(n)

    def restore(self, timed: Restorable) -> None:
        """Bring the gradient and what ``timed`` changes back to what they were, and its arrays into the caches."""
        for other in timed.others:
            other.max()
        self.gradient[:] = self._restored_gradient
        if timed.residual is not None:
            timed.residual[:] = self._restored_residual

    def wait(self) -> None:
        """Return when everything that was begun is done."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the time that ``run`` takes."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def waits(self) -> int | None:
        """Return how often the host has waited for a device so far; None where there is none."""
        return None


class TimedExchange:
    """A compressor's exchange on the inputs, among ``workers`` workers that all give the same."""

    def __init__(self, inputs: Inputs, algorithm: Compressor, workers: int) -> None:
        kernels = inputs.kernels
        shared = type(algorithm.new_memory(kernels, 1)) is Residual
        self._memory = inputs.memory if shared else algorithm.new_memory(kernels, inputs.n)
        self._gradient, self._algorithm, self._workers = inputs.gradient, algorithm, workers
        self._wait = inputs.wait
        self._bucket = Bucket(
            "bucket", inputs.n, self._memory, kernels, rank=0, workers=workers, seed=0, tentative=True
        )
        self.residual = self._memory.held_back()
        self.others = [array for array in vars(self._memory).values() if kernels.is_vector(array, inputs.n)]

    def compress(self) -> list[Collective]:
        """Run from the gradient to the last collective; each is answered with what this worker gave."""
        exchange = self._begin()
        collectives = [next(exchange)]
        while len(collectives) < len(self._algorithm.schedule):
            collectives.append(exchange.send(self._answer(collectives[-1])))
        return collectives

    def run(self) -> tuple[list[Collective], list[float]]:
        """Run the whole exchange; return its collectives, and the seconds of computation before each and after the
        last."""
        collectives: list[Collective] = []
        seconds = []
        began = time.perf_counter()
        exchange = self._begin()
        answer: Any = None  # as next() would send
        for _ in self._algorithm.schedule:
            collectives.append(exchange.send(answer))
            self._wait()
            seconds.append(time.perf_counter() - began)
            answer = self._answer(collectives[-1])
            if isinstance(answer, np.ndarray):
                answer = np.ascontiguousarray(answer)
            if getattr(collectives[-1], "op", "") == "sum":
                answer = answer * (
                    answer.dtype.type(self._workers) if isinstance(answer, np.ndarray) else self._workers
                )
            self._wait()
            began = time.perf_counter()
        self._memory.commit()
        try:
            exchange.send(answer)
        except StopIteration:
            self._wait()
            seconds.append(time.perf_counter() - began)
        return collectives, seconds

    def _begin(self) -> Exchange:
        self._bucket.step += 1
        self._memory.begin([self._gradient])
        self._algorithm.limit_gradients(self._bucket)
        return self._algorithm.exchange(self._bucket)

    def _answer(self, collective: Collective) -> np.ndarray[Any, Any]:
        sent = sent_array(collective)
        if isinstance(collective, AllGather):
            return np.broadcast_to(sent, (self._workers, len(sent)))
        if isinstance(collective, AllToAll):
            return np.broadcast_to(sent[0], sent.shape)
        return sent[0] if isinstance(collective, ReduceScatter) else sent


def fastest(values: Sequence[Any], share: float, key: Callable[[Any], float] | None = None) -> list[Any]:
    """Return the smallest ``share`` of some values, at least one.

    On a machine that others use too, these are the least disturbed.

    >>> fastest([3, 1, 9, 2, 8], 0.5)
    [1, 2, 3]
    """
    return sorted(values, key=key)[: max(1, math.ceil(share * len(values)))]
