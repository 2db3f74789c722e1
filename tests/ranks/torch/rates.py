"""Scenarios: memories in units of updates, under learning rates that change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.scenario import scenario

RATES = ((0.5, 0.5, 0.05, 0.05, 0.4, 0.2), (0.1, 0.1, 0.1, 0.3, 0.3, 0.3))
"""Of two parameters, in each of six steps."""


def _direction(t: int, rank: int) -> torch.Tensor:
    """The gradient of every parameter, whatever its value."""
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(100 * t + rank))


def _moved(make: Any) -> list[torch.Tensor]:
    """How far the parameters get in six steps, the last of which sends everything."""
    parameters = [torch.nn.Parameter(torch.zeros(64, 32)) for _ in RATES]
    compression = make()
    sgd = torch.optim.SGD([{"params": [parameter], "lr": 1.0} for parameter in parameters])
    opt = hvd.DistributedOptimizer(sgd, [(f"p{i}", p) for i, p in enumerate(parameters)], compression=compression)
    for t in range(len(RATES[0])):
        for group, rates in zip(opt.param_groups, RATES, strict=True):
            group["lr"] = rates[t]
        if t == len(RATES[0]) - 1:
            compression.flush()
        opt.zero_grad()
        sum((p * _direction(t, hvd.rank())).sum() for p in parameters).backward()
        opt.step()
    return [-parameter.detach() for parameter in parameters]


def _dense(rates: Sequence[float]) -> torch.Tensor:
    """How far they get when every gradient is applied at the rate that it came at."""
    means = [sum(_direction(t, rank) for rank in range(hvd.size())) / hvd.size() for t in range(len(rates))]
    return sum(rate * mean for rate, mean in zip(rates, means, strict=True))  # type: ignore[return-value]


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def updates_are_applied_at_the_rate_they_came_at() -> None:
    moved = _moved(lambda: hvd_compress.TopK(0.01, memory_unit="update"))
    for parameter, rates in zip(moved, RATES, strict=True):
        torch.testing.assert_close(parameter, _dense(rates), rtol=1e-4, atol=1e-5)
    late = _moved(lambda: hvd_compress.TopK(0.01))
    for parameter, rates in zip(late, RATES, strict=True):
        assert (parameter - _dense(rates)).norm() > 0.3 * _dense(rates).norm()
