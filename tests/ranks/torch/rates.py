"""Scenarios: memories in units of updates, under learning rates that change."""

from __future__ import annotations

import gc
import io
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import memory, same
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


def _made(start: torch.Tensor, compression: Any, rate: float) -> tuple[torch.nn.Parameter, Any]:
    parameter = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([parameter], lr=rate)
    return parameter, hvd.DistributedOptimizer(sgd, named_parameters=[("p", parameter)], compression=compression)


def _steps(parameter: torch.nn.Parameter, opt: Any, first: int, last: int) -> None:
    """The rate is set at the head of the loop, as schedules are that count steps."""
    for t in range(first, last):
        opt.param_groups[0]["lr"] = RATES[0][t]
        opt.zero_grad()
        (parameter * _direction(t, hvd.rank())).sum().backward()
        opt.step()


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def resumed_where_the_rate_drops() -> None:
    """All bits are those of the run that went on; an older state, which says nothing of rates, is taken as before."""
    compression = hvd_compress.TopK(0.05, memory_unit="update")
    parameter, opt = _made(torch.zeros(64, 32), compression, RATES[0][0])
    _steps(parameter, opt, 0, 2)
    file, weights = io.BytesIO(), parameter.detach().clone()
    torch.save(compression.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["rates"] == {"p": RATES[0][1]}
    _steps(parameter, opt, 2, 6)
    older = hvd_compress.state_format.seal({key: value for key, value in saved.items() if key != "rates"})
    for state in (saved, older):
        again = hvd_compress.TopK(0.05, memory_unit="update")
        again.load_state_dict(state)
        resumed, opt = _made(weights, again, RATES[0][0])
        _steps(resumed, opt, 2, 6)
        assert torch.equal(resumed, parameter) is (state is saved)
        assert same(memory(again), memory(compression)) is (state is saved)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def a_new_optimizer_of_another_rate() -> None:
    compression = hvd_compress.TopK(0.05, memory_unit="update")
    parameter, opt = _made(torch.zeros(64, 32), compression, 0.5)
    _steps(parameter, opt, 0, 2)
    held = memory(compression)
    del parameter, opt
    gc.collect()
    _, opt = _made(torch.zeros(64, 32), compression, 0.125)
    compression.bind(opt)
    assert same(memory(compression), {name: 4 * array for name, array in held.items()})
