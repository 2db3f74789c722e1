"""Measures what the PyTorch driver costs the thread that trains, between the ranks of a Horovod job."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

from hvd_compress.advisor.exchange_timing import fastest
from hvd_compress.algorithms.dense import Dense

FEW, MANY = 8, 64
"""Gradients of the steps that are compared: what more of them take is divided by their number."""
SIDE, ROWS = 32, 4096
"""A gradient is a square of so many elements a side, and a batch so many rows: a layer computes for some 0.3 ms, which
leaves the caches to the driver as a training does, and its gradient is so small that what is done with it takes no
time."""
STEPS = 5
"""A turn is so many steps of one kind; the first of them, which finds the caches of another, does not count."""


def measure_driver(share: float, turns: int) -> float:
    """Return the seconds that the driver costs for every gradient that comes, beyond what Horovod does without it.

    Call it on all ranks of a running Horovod job (PyTorch); with six turns it takes some 5 seconds. Backward passes
    with few and with many tiny gradients are timed without compression, and with ``Dense``, which sends them as they
    are: what the driver does is all that differs. Every kind has so many ``turns``; figures are medians of the fastest
    ``share`` of the passes, and the means of the ranks, so that it is the same on all of them.
    """
    import horovod.torch as hvd

    passes = {(driven, count): _backward(driven, count) for count in (FEW, MANY) for driven in (False, True)}
    times: dict[tuple[bool, int], list[float]] = {key: [] for key in passes}
    for number in range(turns + 1):
        for key, backward in passes.items():
            hvd.barrier()
            turn = [backward() for _ in range(STEPS)]
            if number:  # the first one lays out buckets
                times[key] += turn[1:]
    seconds = {key: median(fastest(found, share)) for key, found in times.items()}
    plain, ours = ((seconds[driven, MANY] - seconds[driven, FEW]) / (MANY - FEW) for driven in (False, True))
    everyone: list[float] = hvd.allgather_object(max(0.0, ours - plain))
    return mean(everyone)


def _backward(driven: bool, count: int) -> Callable[[], float]:
    """Return a step of training with so many layers, which changes nothing and returns the seconds of its backward
    pass."""
    import horovod.torch as hvd
    import torch

    layers = [torch.nn.Parameter(torch.eye(SIDE)) for _ in range(count)]
    optimizer: Any = hvd.DistributedOptimizer(
        torch.optim.SGD(layers, lr=0.0),
        named_parameters=[(f"hvd_compress.measure.{driven}.{i}.{count}", layer) for i, layer in enumerate(layers)],
        compression=Dense(min_numel=1) if driven else hvd.Compression.none,
    )
    inputs = torch.ones(ROWS, SIDE)

    def step() -> float:
        optimizer.zero_grad()
        outputs = inputs
        for layer in layers:
            outputs = torch.tanh(outputs @ layer)
        loss: Any = outputs.mean()
        began = time.perf_counter()
        loss.backward()
        seconds = time.perf_counter() - began
        optimizer.step()
        return seconds

    return step
