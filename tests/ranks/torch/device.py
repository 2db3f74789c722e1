"""Scenarios: gradients on a device. The CPU is one here, by Triton's interpreter, through the whole driver."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress.drivers.torch.transport import HorovodTransport
from tests.ranks.checks import memory, same
from tests.ranks.recording import recorded
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, optimizer


@contextmanager
def on_device(active: bool = True) -> Iterator[None]:
    """Optimizers that are served first in here have their gradients on a device."""
    if active:
        os.environ["HVD_COMPRESS_KERNELS"] = "device"
    try:
        yield
    finally:
        os.environ.pop("HVD_COMPRESS_KERNELS", None)


def small_network() -> torch.nn.Sequential:
    """Two matrices that are compressed, and what is not: the interpreter is slow."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(36, 30), torch.nn.ReLU(), torch.nn.Linear(30, 40))


def steps(model: Any, opt: Any, count: int, first: int = 0) -> None:
    for t in range(first, first + count):
        opt.zero_grad()
        inputs = torch.randn(8, 36, generator=torch.Generator().manual_seed(100 * t + hvd.rank()))
        (model(inputs) ** 2).mean().backward()
        opt.step()


def trained(compression: Any, *, device: bool, count: int = 3) -> tuple[list[Any], list[torch.Tensor], dict[str, Any]]:
    """What a rank sends in a few steps, and the weights and the memory after them."""
    model = small_network()
    opt = optimizer(model, compression, lr=0.5)
    with on_device(device), recorded(HorovodTransport) as sent:
        steps(model, opt, count)
        held = memory(compression)
    assert_replicas_equal(model)
    assert compression.stats().get("transport") == ("host" if device else None)
    rounds = sorted((name, what) for _, name, what in sent if "round" in name)
    assert len(rounds) > count
    return rounds, [p.detach().clone() for p in model.parameters()], held


def assert_as_on_the_host(compressors: Sequence[Any]) -> None:
    """The same payloads, weights and memories, to the last bit."""
    for compression in compressors:
        config = compression.to_config()
        sent, weights, held = trained(compression, device=True)
        expected = trained(hvd_compress.from_config(config), device=False)
        assert sent == expected[0], compression
        assert all(torch.equal(x, y) for x, y in zip(weights, expected[1], strict=True)), compression
        assert same(held, expected[2]), compression


@scenario("mpirun 2", long=["gloo 2", "mpirun 3"])
def as_on_the_host() -> None:
    assert_as_on_the_host([hvd_compress.SIDCo(0.05, bucket_mb=0.006)])


@scenario(long=["mpirun 2"])
def every_compressor_as_on_the_host() -> None:
    assert_as_on_the_host(
        [
            hvd_compress.TopK(0.05, wire="bfloat16"),
            hvd_compress.TopK(0.05, aggregate="reduce-scatter", wire="range8"),
            hvd_compress.DGC(0.05, clip=0.1, weight_decay=0.01),
            hvd_compress.SIDCo(0.05, fit="gamma-pareto", stages="adaptive"),
            hvd_compress.SharedTopK(0.05, low_pass=0.5),
            hvd_compress.QSGDMaxNorm(4),
            hvd_compress.QSGDMaxNormMultiScale((3, 6, 9), norm="l2"),
            hvd_compress.RandKMaxNorm(0.3, 4),
            hvd_compress.RandKMaxNormMultiScale(0.3, error_feedback=False),
            hvd_compress.TernGrad(chunk="layer", shared=True),
            hvd_compress.Dense(),
            hvd_compress.Half(),
            hvd_compress.Half(dtype="float16", aggregate="all-reduce"),
            hvd_compress.Half(aggregate="reduce-scatter"),
        ]
    )
