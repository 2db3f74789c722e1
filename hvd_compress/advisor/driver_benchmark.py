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
SIDE = 8
"""A gradient is a square of so many elements a side: what is done with the elements takes no time."""
STEPS = 5
"""A turn is so many steps of one kind; the first of them, which finds the caches of another, does not count."""
Moments = tuple[float, float]
"""The seconds of a backward pass, and of Horovod's ``synchronize`` after it."""


def measure_driver(share: float, turns: int) -> dict[str, float]:
    """Measure between the ranks of a running Horovod job (PyTorch); call it on all of them. It takes a few seconds.

    Steps with few and with many tiny gradients are made without compression, and with ``Dense``, which sends them as
    they are: what the driver does is all that differs. Every kind has so many ``turns``; figures are of the medians of
    the fastest ``share`` of the steps, and the means of the ranks.

    Return ``per_gradient``, the seconds that a gradient takes more when it comes, and ``per_mean``, those that its mean
    takes more in the end.
    """
    import horovod.torch as hvd

    steps = {(driven, count): _step(driven, count) for count in (FEW, MANY) for driven in (False, True)}
    times: dict[tuple[bool, int], list[Moments]] = {key: [] for key in steps}
    for number in range(turns + 1):
        for key, step in steps.items():
            hvd.barrier()
            turn = [step() for _ in range(STEPS)]
            if number:  # the first one lays out buckets
                times[key] += turn[1:]
    growth = {driven: _growth(times[driven, FEW], times[driven, MANY], share) for driven in (False, True)}
    found = [max(0.0, ours - plain) for ours, plain in zip(growth[True], growth[False], strict=True)]
    everyone = hvd.allgather_object(found)
    return dict(zip(("per_gradient", "per_mean"), map(mean, zip(*everyone, strict=True)), strict=True))


def _step(driven: bool, count: int) -> Callable[[], Moments]:
    """Return a step of training with so many gradients, which changes nothing."""
    import horovod.torch as hvd
    import torch

    named = [(f"hvd_compress.measure.{driven}.{count}.{i}", torch.zeros(SIDE, SIDE)) for i in range(count)]
    parameters = [(name, torch.nn.Parameter(values)) for name, values in named]
    optimizer: Any = hvd.DistributedOptimizer(
        torch.optim.SGD([parameter for _, parameter in parameters], lr=0.0),
        named_parameters=parameters,
        compression=Dense(min_numel=1) if driven else hvd.Compression.none,
    )

    def step() -> Moments:
        optimizer.zero_grad()
        loss: Any = torch.stack([parameter.sum() for _, parameter in parameters]).sum()
        began = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.synchronize()
        ended = time.perf_counter()
        with optimizer.skip_synchronize():
            optimizer.step()
        return backward - began, ended - backward

    return step


def _growth(few: list[Moments], many: list[Moments], share: float) -> list[float]:
    """Return the seconds that a gradient adds to the backward pass, and to what follows."""
    few, many = (fastest(times, share, sum) for times in (few, many))
    medians = [[median(column) for column in zip(*times, strict=True)] for times in (few, many)]
    return [(more - less) / (MANY - FEW) for less, more in zip(*medians, strict=True)]
