"""The model that ``hvd-compress advise`` is asked about: its gradients, and its step time without communication."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hvd_compress.cli.forecast import Model, Tensor

BACKWARD = 2 / 3
"""Share of a step that the backward pass takes, where it is not measured: twice the forward pass."""
TENSORS, LARGEST = 50, 2_500_000
"""A model of which only the number of parameters is known has so many tensors, or more of at most so many elements."""
STEPS = 5

TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
RATES = {"k": 1e3, "m": 1e6, "g": 1e9}


def seconds(text: str) -> float:
    """Seconds of ``120ms``, ``50us`` or ``0.2s``.

    >>> seconds("120ms"), seconds("50us")
    (0.12, 5e-05)

    Raises:
        ValueError: it is no such thing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is not a time like 120ms, 50us or 0.2s")
    return float(f"{float(found[1]) * TIMES[found[2]]:.12g}")


def bandwidth(text: str) -> float:
    """Bits a second of ``10gbit`` or ``100mbit``.

    >>> bandwidth("2.5gbit")
    2500000000.0

    Raises:
        ValueError: it is no such thing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg])bit(?:/s)?", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is not a rate like 10gbit or 100mbit")
    return float(found[1]) * RATES[found[2]]


def of_numbers(parameters: int, step: float) -> Model:
    """A model of equal tensors, whose gradients come at equal intervals."""
    count = max(TENSORS if parameters >= TENSORS else 1, -(-parameters // LARGEST))
    sizes = [parameters // count + (1 if i < parameters % count else 0) for i in range(count)]
    tensors = [Tensor(f"tensor{i}", size, 2, (i + 1) / count) for i, size in enumerate(sizes)]
    return Model(tensors, step * (1 - BACKWARD), step * BACKWARD, 0.0)


def load(path: str) -> Any:
    """The torch module that ``package.module:name`` is, or makes when it is called.

    Raises:
        ValueError: there is nothing of that name, or it is no torch module with parameters.
        ImportError: PyTorch, or the module, cannot be imported.
    """
    import torch

    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--model must be MODULE:NAME, such as torchvision.models:resnet50, got {path!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made: Any = importlib.import_module(module)
    finally:
        sys.path.pop(0)
    for part in name.split("."):
        if not hasattr(made, part):
            raise ValueError(f"--model {path}: {module} has no {name}")
        made = getattr(made, part)
    if not isinstance(made, torch.nn.Module):
        try:
            made = made()
        except TypeError as error:
            raise ValueError(f"--model {path} cannot be called without arguments: {error}") from error
    if not isinstance(made, torch.nn.Module) or not list(made.parameters()):
        raise ValueError(f"--model {path} is not a torch.nn.Module with parameters, and makes none: {made!r:.100}")
    return made


def of_module(network: Any, step: float) -> Model:
    """A network's tensors, whose gradients come from the last to the first, at equal intervals."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad][::-1]
    tensors = [Tensor(name, p.numel(), p.dim(), (i + 1) / len(named)) for i, (name, p) in enumerate(named)]
    return Model(tensors, step * (1 - BACKWARD), step * BACKWARD, 0.0)


def timed(network: Any, shape: Sequence[int], vocabulary: int | None) -> Model:
    """Steps of training on this machine's CPU, on one thread: when each gradient comes, and medians of the passes.

    The inputs are normal numbers of that shape, or below ``vocabulary``; the loss is the mean square of the output (of
    its first tensor); the optimizer is SGD.
    """
    import torch

    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    inputs = torch.randn(*shape) if vocabulary is None else torch.randint(0, vocabulary, tuple(shape))
    times: dict[str, float] = {}
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    hooks = [
        p.register_post_accumulate_grad_hook(lambda _, name=name: times.__setitem__(name, time.perf_counter()))
        for name, p in named
    ]
    passes: list[tuple[float, float, float]] = []
    moments: dict[str, list[float]] = {name: [] for name, _ in named}
    for number in range(STEPS + 1):
        optimizer.zero_grad()
        began = time.perf_counter()
        output = network(inputs)
        first = output if isinstance(output, torch.Tensor) else next(iter(getattr(output, "values", output.__iter__)()))
        loss = first.float().square().mean()
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.step()
        if number == 0:
            continue
        passes.append((forward - began, backward - forward, time.perf_counter() - backward))
        for name, moment in times.items():
            moments[name].append((moment - forward) / (backward - forward))
    for hook in hooks:
        hook.remove()
    shares = {name: min(1.0, median(found)) for name, found in moments.items() if found}
    tensors = [Tensor(name, p.numel(), p.dim(), shares[name]) for name, p in named if name in shares]
    tensors.sort(key=lambda tensor: tensor.ready)
    return Model(tensors, *(median(column) for column in zip(*passes, strict=True)))
