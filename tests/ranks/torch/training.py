"""A small network, its data, and a training loop with everything that can vary; runs on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import horovod.torch as hvd
import torch

STEPS = 50


def network(seed: int = 0) -> torch.nn.Sequential:
    """Three weight matrices that are compressed (one below min_numel is not), and biases that are not."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 10),
    )


def batches(steps: int, first: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Any, Any]]:
    """This rank's batches of a learnable problem; batch ``t`` depends on rank and t only."""
    rule = torch.randn(64, 2, generator=torch.Generator().manual_seed(5))
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * t + hvd.rank())
        inputs = torch.randn(32, 64, generator=generator)
        yield inputs.to(dtype), (inputs @ rule).argmax(1)


def optimizer(model: torch.nn.Module, compression: Any, *, lr: float = 0.3, **keywords: Any) -> Any:
    """Horovod's optimizer over SGD, with the parameters' names unless told otherwise."""
    keywords.setdefault("named_parameters", model.named_parameters())
    if isinstance(keywords["named_parameters"], str):  # a prefix, where two models would share names
        prefix = keywords["named_parameters"]
        keywords["named_parameters"] = [(prefix + name, p) for name, p in model.named_parameters()]
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    return hvd.DistributedOptimizer(sgd, compression=compression, **keywords)


def train(
    model: torch.nn.Module,
    opt: Any,
    *,
    steps: int = STEPS,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    before_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Plain training; returns the losses."""
    losses = []
    for t, (inputs, labels) in enumerate(batches(steps, first, dtype), start=first):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs).float(), labels)
        loss.backward()
        if before_step is not None:
            before_step(t)
        opt.step()
        losses.append(loss.item())
    return losses


def scaled_step(model: torch.nn.Module, opt: Any, scaler: Any, t: int) -> None:
    """A step with this rank's batch ``t`` under a ``GradScaler``, as Horovod wants it done."""
    ((inputs, labels),) = batches(1, t)
    opt.zero_grad()
    scaler.scale(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
    opt.synchronize()
    scaler.unscale_(opt)
    with opt.skip_synchronize():
        scaler.step(opt)
    scaler.update()


def digest(model: torch.nn.Module) -> str:
    """A hash of all parameters' bits."""
    parts = [p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def assert_replicas_equal(model: torch.nn.Module, among: list[int] | None = None) -> None:
    """Bit for bit, over the ranks (or those ``among``; every rank calls this all the same)."""
    digests = gather(digest(model))
    assert len({digests[rank] for rank in among or range(hvd.size())}) == 1, "replicas differ"


def gather(thing: Any) -> list[Any]:
    return hvd.allgather_object(thing) if hvd.size() > 1 else [thing]
