"""Scenarios: what Horovod's PyTorch functions were asked for comes out, or is refused. The oracle is plain Horovod in
the same job, beside compressors that lose nothing."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import expect
from tests.ranks.process_sets import halves
from tests.ranks.scenario import scenario

LOSSLESS: tuple[Callable[[], Any], ...] = (hvd_compress.Dense, lambda: hvd_compress.TopK(1.0))


def mine(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of this rank's own."""
    generator = torch.Generator().manual_seed(100 * salt + hvd.rank())
    return torch.randn(*shape, generator=generator).to(dtype)


def process_sets() -> dict[str, Any]:
    """Process sets of every kind; each rank has those that it is in."""
    return {"all": hvd.global_process_set, "half": halves(hvd.size())[hvd.rank() % 2]}


REFUSED = "refused"
OPS = [
    hvd.Average,
    hvd.Sum,
    (hvd.Min, REFUSED),
    (hvd.Max, REFUSED),
    (hvd.Product, REFUSED),
    (hvd.Adasum, REFUSED),
]
FUNCTIONS: dict[str, dict[str, Any]] = {
    "allreduce": {
        "tensor": [
            lambda: mine(64, 64),
            lambda: mine(5000),
            lambda: mine(3),
            lambda: mine(40, 40, dtype=torch.float16),
        ],
        "average": [True, False, None],
        "name": ["a name", None],
        "compression": LOSSLESS,
        "op": OPS,
        "prescale_factor": [0.5, 3.0, 0.3, 0.0, -1.0],
        "postscale_factor": [0.5, 3.0, 0.3, 0.0, -1.0],
        "process_set": ["all", "half"],
    },
    "grouped_allreduce": {
        "tensors": [
            lambda: [mine(64, 64), mine(33, 65, salt=1)],
            lambda: [mine(3), mine(64, 64), mine(2, salt=2)],
            lambda: (mine(64, 64, salt=salt) for salt in range(3)),
            lambda: [mine(2, dtype=torch.float16), mine(64, 64, dtype=torch.float16)],
        ],
        "average": [True, False, None],
        "name": ["a name", None],
        "compression": LOSSLESS,
        "op": OPS,
        "prescale_factor": [0.5, 0.3],
        "postscale_factor": [0.5, 0.3],
        "process_set": ["all", "half"],
    },
    "reducescatter": REFUSED,
    "grouped_reducescatter": REFUSED,
    "DistributedOptimizer": {
        "optimizer": [
            lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01),
            lambda parameters: torch.optim.Adam(parameters, 0.01),
        ],
        "named_parameters": [True, None],
        "compression": LOSSLESS,
        "backward_passes_per_step": [1, 2],
        "op": OPS,
        "gradient_predivide_factor": [1.0, 2.0, 3.0],
        "num_groups": [0, 2],
        "groups": [None, 3, "weights"],
        "sparse_as_dense": [False, True],
        "process_set": ["all", "half"],
    },
}
"""function x argument x value: honoured, unless marked."""


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def table_is_complete() -> None:
    """A function or an argument that a version of Horovod adds is missing here, and is to be thought about."""
    found = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(hvd).items()
        if inspect.isfunction(function) and "compression" in inspect.signature(function).parameters
    }
    assert set(found) == set(FUNCTIONS)
    for name, arguments in FUNCTIONS.items():
        assert arguments == REFUSED or found[name] == list(arguments), name


def _cases(function: str) -> Iterator[tuple[str, Any, bool]]:
    for argument, values in FUNCTIONS[function].items():
        if argument != "compression":
            for value in values:
                refused = isinstance(value, tuple) and value[-1] == REFUSED
                yield argument, value[0] if refused else value, refused


def _call(function: str, compression: Any, argument: str, value: Any) -> Any:
    keywords: dict[str, Any] = {"name": "the usual", "compression": compression}
    positional = _positional(function)
    thing = value() if argument == positional else mine(64, 64)
    keywords[positional] = thing if argument == positional or positional == "tensor" else [thing]
    if argument and argument != positional:
        keywords[argument] = process_sets()[value] if argument == "process_set" else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        result = getattr(hvd, function)(**keywords)
    return result if isinstance(result, list) else [result]


def _positional(function: str) -> str:
    return next(iter(inspect.signature(getattr(hvd, function)).parameters))


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def functions_and_arguments() -> None:
    for function in ("allreduce", "grouped_allreduce"):
        for argument, value, refused in _cases(function):
            for make in LOSSLESS:
                case = f"{function}({argument}={value})"
                if refused:
                    expect(ValueError, "op", run=lambda: _call(function, make(), argument, value))  # noqa: B023
                    continue
                wanted = _call(function, hvd.Compression.none, argument, value)
                got = _call(function, make(), argument, value)
                assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in wanted], case
                for left, right in zip(got, wanted, strict=True):
                    rtol = 2e-3 if left.dtype == torch.float16 else 2e-6
                    torch.testing.assert_close(left, right, rtol=rtol, atol=rtol, msg=lambda m: f"{case}: {m}")  # noqa: B023
    for function in ("reducescatter", "grouped_reducescatter"):
        expect(
            NotImplementedError,
            function,
            "hvd.allreduce",
            run=lambda: _call(function, hvd_compress.TopK(1.0), "", None),  # noqa: B023
        )
    both = {"op": hvd.Sum, "average": True}
    expect(ValueError, "op", run=lambda: hvd.allreduce(mine(64, 64), compression=hvd_compress.TopK(1.0), **both))
    other = hvd_compress.TopK(1.0, process_set=process_sets()["half"])
    expect(ValueError, "process_set", run=lambda: hvd.allreduce(mine(64, 64), compression=other))


def trained(compression: Any, argument: str, value: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    sparse = argument == "sparse_as_dense" and value
    model = torch.nn.Sequential(
        torch.nn.Embedding(64, 32, sparse=bool(sparse)),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 32),
        torch.nn.Linear(32, 64),
    )
    weights = [p for p in model.parameters() if p.dim() > 1]
    make = value if argument == "optimizer" else lambda parameters: torch.optim.SGD(parameters, 0.1)
    keywords: dict[str, Any] = {"named_parameters": list(model.named_parameters()), "compression": compression}
    if argument == "named_parameters" and value is None:
        del keywords["named_parameters"]
    elif argument == "process_set":
        keywords[argument] = process_sets()[value]
    elif argument not in ("optimizer", "named_parameters"):
        keywords[argument] = [weights] if value == "weights" else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        optimizer = hvd.DistributedOptimizer(make(model.parameters()), **keywords)
    passes = keywords.get("backward_passes_per_step", 1)
    for t in range(4):
        optimizer.zero_grad()
        for n in range(passes):
            words = torch.randint(0, 64, (8, 4), generator=torch.Generator().manual_seed(7 * t + 100 * n + hvd.rank()))
            torch.nn.functional.cross_entropy(model(words), words.sum(1) % 64).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def optimizers_and_arguments() -> None:
    for argument, value, refused in _cases("DistributedOptimizer"):
        for make in LOSSLESS:
            case = f"DistributedOptimizer({argument}={value})"
            if refused:
                expect(ValueError, "op", run=lambda: trained(make(), argument, value))  # noqa: B023
                continue
            for left, right in zip(
                trained(make(), argument, value), trained(hvd.Compression.none, argument, value), strict=True
            ):
                torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6, msg=lambda m: f"{case}: {m}")  # noqa: B023


@scenario("mpirun 2", long=["mpirun 4"])
def small_tensors_are_left_to_horovod() -> None:
    """Whatever the function and its op. (Gloo has no Adasum.)"""
    calls: dict[str, Callable[[Any], Any]] = {
        "reducescatter": lambda compression: [hvd.reducescatter(mine(8, 2), name="x", compression=compression)],
        "grouped_reducescatter": lambda compression: hvd.grouped_reducescatter(
            [mine(8, 2), mine(9)], name="x", compression=compression
        ),
        **{
            f"grouped_allreduce, op={op}": lambda compression, op=op: hvd.grouped_allreduce(  # type: ignore[misc]
                [mine(8, 2), mine(9)], name="x", op=op, compression=compression
            )
            for op in (hvd.Adasum, hvd.Min, hvd.Max, hvd.Product)
        },
    }
    for name, call in calls.items():
        for left, right in zip(call(hvd_compress.TopK(0.1)), call(hvd.Compression.none), strict=True):
            assert torch.equal(left, right), name


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def passes_that_change() -> None:
    """``set_backward_passes_per_step`` between steps."""

    def weight(compression: Any) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 64)
        opt = hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), 1e-3),
            named_parameters=model.named_parameters(),
            compression=compression,
        )
        for t, passes in enumerate((1, 3, 3, 1, 2)):
            opt.set_backward_passes_per_step(passes)
            opt.zero_grad()
            for n in range(passes):
                model(mine(8, 64, salt=10 * t + n)).square().sum().backward()
            opt.step()
        return model.weight.detach()

    for make in LOSSLESS:
        torch.testing.assert_close(weight(make()), weight(hvd.Compression.none), rtol=1e-5, atol=1e-6)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def groups_of_sparse_gradients() -> None:
    """Refused by Horovod, also with ``sparse_as_dense``, and by the compressor, which says what to do."""
    for as_dense in (False, True):
        for compression, error, words in (
            (hvd.Compression.none, ValueError, "not supported"),
            (hvd_compress.TopK(1.0), TypeError, "use sparse_as_dense=True, without groups="),
        ):
            embedding = torch.nn.Embedding(64, 32, sparse=True)
            opt = hvd.DistributedOptimizer(
                torch.optim.SGD(embedding.parameters(), 0.1),
                named_parameters=embedding.named_parameters(),
                compression=compression,
                groups=1,
                sparse_as_dense=as_dense,
            )
            expect(error, words, run=embedding(torch.arange(8)).sum().backward)
            del opt
