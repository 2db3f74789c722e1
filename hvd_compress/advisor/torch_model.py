"""A PyTorch network as a model to advise on: loaded by name, and timed on this machine."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hvd_compress.advisor.model import Gradient, Model, of_shapes

STEPS = 5
"""Steps that are timed."""


def load(path: str) -> Any:
    """Return the torch module that ``package.module:name`` is, or makes when it is called.

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
    """Return the network's model: its gradients come from the last to the first, at equal intervals."""
    return of_shapes([(name, tuple(parameter.shape)) for name, parameter in _trained(network)][::-1], step)


def timed(network: Any, shape: Sequence[int], vocabulary: int | None) -> Model:
    """Return the network's model from steps of training on this machine's CPU, on one thread: when each gradient comes,
    and medians of the passes.

    The inputs are normal numbers of that shape, or whole numbers below ``vocabulary``; the loss is the mean square of
    the output (of its first tensor); the optimizer is SGD.

    Raises:
        ValueError: the network does not take such inputs; says what to give instead.
    """
    import torch

    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    inputs = torch.randn(*shape) if vocabulary is None else torch.randint(0, vocabulary, tuple(shape))
    times: dict[str, float] = {}
    named = _trained(network)
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: times.__setitem__(name, time.perf_counter()))
        for name, parameter in named
    ]
    passes: list[tuple[float, float, float]] = []
    moments: dict[str, list[float]] = {name: [] for name, _ in named}
    for number in range(STEPS + 1):
        optimizer.zero_grad()
        began = time.perf_counter()
        output = network(inputs) if number else _first_output(network, inputs, vocabulary)
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
    gradients = [Gradient(name, tuple(p.shape), shares[name]) for name, p in named if name in shares]
    gradients.sort(key=lambda gradient: gradient.ready)
    return Model(gradients, *(median(column) for column in zip(*passes, strict=True)))


def _trained(network: Any) -> list[tuple[str, Any]]:
    """Return the parameters that have a gradient, in the network's order."""
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]


def _first_output(network: Any, inputs: Any, vocabulary: int | None) -> Any:
    """Return what the network makes of these inputs; raise ValueError if it does not take them."""
    try:
        return network(inputs)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        wants_integers = "scalar types: Long, Int" in said or "should be an integer" in said.lower()
        if vocabulary is None and wants_integers:
            raise ValueError("the model takes whole numbers: give --vocabulary, the number of its tokens") from error
        if vocabulary is not None and isinstance(error, IndexError):
            raise ValueError(f"--vocabulary {vocabulary} is more than the model's embedding has: {said}") from error
        kind = "numbers" if vocabulary is None else f"whole numbers below {vocabulary}"
        shape = ",".join(str(length) for length in inputs.shape)
        raise ValueError(f"the model cannot take {kind} of --input {shape}: {said}") from error
