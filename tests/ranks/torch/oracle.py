"""What scenarios compare a training with: plain Horovod in the same job, and the exact sums of gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import memory
from tests.ranks.torch.optimizers import sidco
from tests.ranks.torch.training import assert_replicas_equal, batches, network, optimizer


@contextmanager
def logged() -> Iterator[list[str]]:
    """The messages that the library logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hvd_compress")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def backward(model: torch.nn.Module, t: int, factor: float = 1.0) -> None:
    ((inputs, labels),) = batches(1, t)
    (factor * torch.nn.functional.cross_entropy(model(inputs), labels)).backward()


def loss_of(model: torch.nn.Module, t: int) -> Callable[[], torch.Tensor]:
    ((inputs, labels),) = batches(1, t)
    return lambda: torch.nn.functional.cross_entropy(model(inputs), labels)


class Ledger:
    """Keeps the exact sum of all ranks' gradients, with learning rate ``lr``; after a flush the weights are there."""

    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        self.model, self.lr = model, lr
        self.start = [p.detach().clone() for p in model.parameters()]
        self.sums = [torch.zeros_like(p) for p in self.start]

    def backward(self, loss: Callable[[], torch.Tensor]) -> None:
        parameters = [(i, p) for i, p in enumerate(self.model.parameters()) if p.requires_grad]
        gradients = torch.autograd.grad(loss(), [p for _, p in parameters], allow_unused=True)
        for (index, _), gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                self.sums[index] += gradient.to_dense()
        loss().backward()

    def check(self) -> None:
        for parameter, first, total in zip(self.model.parameters(), self.start, self.sums, strict=True):
            exact = hvd.allreduce(total, name="exact")
            torch.testing.assert_close((first - parameter.detach()) / self.lr, exact, rtol=1e-3, atol=1e-4)
        assert_replicas_equal(self.model)


def check_ledger(model: torch.nn.Module, compression: Any) -> None:
    """Train four steps, of which the last is flushed: the weights are where the sum of all gradients has them, and all
    memories are empty."""
    opt = optimizer(model, compression, lr=0.05)
    ledger = Ledger(model, 0.05)
    for t in range(4):
        opt.zero_grad()
        if t == 3 and hvd.rank() == hvd.size() - 1:
            compression.flush()
        ledger.backward(loss_of(model, t))
        opt.step()
        assert_replicas_equal(model)
    ledger.check()
    assert not any(array.any() for array in memory(compression).values())


def close(left: torch.nn.Module, right: torch.nn.Module) -> None:
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def beside_horovod(run: Callable[[torch.nn.Module, Any], Any]) -> None:
    """``run`` trains alike with compressors that lose nothing, and learns with one that does."""
    plain = network()
    run(plain, hvd.Compression.none)
    for make in (hvd_compress.Dense, lambda: hvd_compress.TopK(1.0), sidco):
        model = network()
        run(model, make())
        assert_replicas_equal(model)
        if make is not sidco:
            close(model, plain)
