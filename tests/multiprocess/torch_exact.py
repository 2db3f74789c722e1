"""Scenarios: what Horovod's PyTorch functions were asked for comes out, or is refused. The oracle is plain Horovod in
the same job, beside compressors that lose nothing."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.multiprocess.checks import expect
from tests.multiprocess.training import main

LOSSLESS: tuple[Callable[[], Any], ...] = (hvd_compress.Dense, lambda: hvd_compress.TopK(1.0))


def mine(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of this rank's own."""
    generator = torch.Generator().manual_seed(100 * salt + hvd.rank())
    return torch.randn(*shape, generator=generator).to(dtype)


def sets() -> dict[str, Any]:
    """Process sets of every kind, made once; each rank has those that it is in."""
    if not _sets:
        halves = [hvd.add_process_set(list(range(first, hvd.size(), 2))) for first in range(min(2, hvd.size()))]
        _sets.update(all=hvd.global_process_set, half=halves[hvd.rank() % 2])
    return _sets


_sets: dict[str, Any] = {}

REFUSED = "refused"
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
        "op": [
            hvd.Average,
            hvd.Sum,
            (hvd.Min, REFUSED),
            (hvd.Max, REFUSED),
            (hvd.Product, REFUSED),
            (hvd.Adasum, REFUSED),
        ],
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
        "op": [hvd.Average, hvd.Sum, (hvd.Min, REFUSED), (hvd.Max, REFUSED), (hvd.Product, REFUSED)],
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
        "op": [
            hvd.Average,
            hvd.Sum,
            (hvd.Adasum, REFUSED),
            (hvd.Min, REFUSED),
            (hvd.Max, REFUSED),
            (hvd.Product, REFUSED),
        ],
        "gradient_predivide_factor": [1.0, 2.0, 3.0],
        "num_groups": [0, 2],
        "groups": [None, 3, "weights"],
        "sparse_as_dense": [False, True],
        "process_set": ["all", "half"],
    },
}
"""function x argument x value: honoured, unless marked."""


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
        keywords[argument] = sets()[value] if argument == "process_set" else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        result = getattr(hvd, function)(**keywords)
    return result if isinstance(result, list) else [result]


def _positional(function: str) -> str:
    return next(iter(inspect.signature(getattr(hvd, function)).parameters))


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
    other = hvd_compress.TopK(1.0, process_set=sets()["half"])
    expect(ValueError, "process_set", run=lambda: hvd.allreduce(mine(64, 64), compression=other))


def _trained(compression: Any, argument: str, value: Any) -> list[torch.Tensor]:
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
    elif argument not in ("optimizer", "named_parameters"):
        keywords[argument] = {"process_set": lambda: sets()[value], "groups": lambda: [weights] if value else None}.get(
            argument if value in ("all", "half", "weights") else "", lambda: value
        )()
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


def optimizers_and_arguments() -> None:
    for argument, value, refused in _cases("DistributedOptimizer"):
        for make in LOSSLESS:
            case = f"DistributedOptimizer({argument}={value})"
            if refused:
                expect(ValueError, "op", run=lambda: _trained(make(), argument, value))  # noqa: B023
                continue
            for left, right in zip(
                _trained(make(), argument, value), _trained(hvd.Compression.none, argument, value), strict=True
            ):
                torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6, msg=lambda m: f"{case}: {m}")  # noqa: B023


def _backward(compression: Any, reduce: Callable[[torch.Tensor, Any], torch.Tensor], **leaf: Any) -> torch.Tensor:
    w = mine(64, 64, **leaf).requires_grad_()
    (reduce(w * w, compression) * mine(64, 64, salt=1) + w).sum().backward()
    assert w.grad is not None
    return w.grad


def autograd_is_horovods() -> None:
    def once(x: torch.Tensor, c: Any, **keywords: Any) -> torch.Tensor:
        result: torch.Tensor = hvd.allreduce(x, name="once", compression=c, **keywords)
        return result

    def scaled(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(x, c, op=hvd.Sum, prescale_factor=0.5, postscale_factor=3.0)

    def averaged(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(x, c)

    def in_a_set(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(x, c, op=hvd.Sum, process_set=sets()["half"])

    def twice(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(once(x, c), c) + once(x.sin(), c)

    def grouped(x: torch.Tensor, c: Any) -> torch.Tensor:
        outputs = hvd.grouped_allreduce([x, x.cos(), x[:2, :2].contiguous()], name="grouped", compression=c)
        return outputs[hvd.rank() % 2] + outputs[2].repeat(32, 32)  # every other rank leaves another output unused

    def nameless(x: torch.Tensor, c: Any) -> torch.Tensor:
        return hvd.allreduce(x, compression=c) + hvd.allreduce(2 * x, compression=c)

    for reduce in (averaged, scaled, in_a_set, twice, grouped, nameless):
        wanted = _backward(hvd.Compression.none, reduce)
        for make in LOSSLESS:
            torch.testing.assert_close(_backward(make(), reduce), wanted, msg=lambda m: f"{reduce.__name__}: {m}")  # noqa: B023
    for dtype in (torch.float16, torch.float64):
        left, right = (_backward(c, averaged, dtype=dtype) for c in (hvd_compress.Dense(), hvd.Compression.none))
        torch.testing.assert_close(left, right)
    _backward(hvd_compress.Dense(), averaged, dtype=torch.bfloat16)  # Horovod alone cannot


def second_derivatives() -> None:
    def penalty(compression: Any) -> torch.Tensor:
        w = mine(64, 64).requires_grad_()
        y = hvd.allreduce(w**3, name="cubes", compression=compression)
        (first,) = torch.autograd.grad((y * y).sum(), w, create_graph=True)
        first.pow(2).sum().backward()
        assert w.grad is not None
        return w.grad

    torch.testing.assert_close(penalty(hvd_compress.Dense()), penalty(hvd.Compression.none))


def no_gradient_is_wanted() -> None:
    x = mine(64, 64).requires_grad_()
    with torch.no_grad():
        assert not hvd.allreduce(x, name="x", compression=hvd_compress.Dense()).requires_grad
    assert not hvd.allreduce(x.detach(), name="x", compression=hvd_compress.Dense()).requires_grad


def three_threads() -> None:
    """With names of their own, as in Horovod."""
    compression = hvd_compress.TopK(1.0)
    total = sum(range(1, hvd.size() + 1))
    wrong: list[str] = []

    def work(thread: int) -> None:
        try:
            for _ in range(20):
                x = torch.full((64, 64), float(thread * (hvd.rank() + 1)))
                y = hvd.allreduce(x, name=f"thread{thread}", compression=compression, op=hvd.Sum)
                if not bool((y == thread * total).all()):
                    wrong.append(f"{thread}: {y[0, 0]}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def shared_randomness_in_threads() -> None:
    """The random numbers of a call are the same on every rank, in whatever order threads come by."""
    compression = hvd_compress.from_config({"name": "randk-maxnorm"})
    results: dict[int, torch.Tensor] = {}

    def work(thread: int) -> None:
        x = torch.full((64, 64), float(thread))
        results[thread] = hvd.allreduce(x, name=f"random{thread}", compression=compression)

    order = (1, 2, 3) if hvd.rank() % 2 else (3, 2, 1)
    for thread in order:  # one after the other would wait for each other
        threading.Thread(target=work, args=(thread,)).start()
    while len(results) < 3:
        threading.Event().wait(0.01)
    for thread in (1, 2, 3):
        low, high = (hvd.allreduce(results[thread], name="seen", op=op) for op in (hvd.Min, hvd.Max))
        assert torch.equal(low, high)


def ranks_that_differ_outside() -> None:
    """In shape, dtype or compressor: every rank says so, and the next call works."""
    last = hvd.rank() == hvd.size() - 1
    compression = hvd_compress.TopK(1.0)

    def call(x: torch.Tensor, c: Any = compression) -> Any:
        return hvd.allreduce(x, name="x", compression=c)

    expect(ValueError, "disagree on x", run=lambda: call(mine(64, 64).view(4096) if last else mine(64, 64)))
    expect(ValueError, "disagree", run=lambda: call(mine(64, 64).to(torch.float16 if last else torch.float32)))
    expect(ValueError, "disagree", run=lambda: call(mine(64, 64), hvd_compress.TopK(0.5 if last else 1.0)))
    torch.testing.assert_close(call(mine(64, 64)), hvd.allreduce(mine(64, 64), name="plain"))


def called_by_hand() -> None:
    expect(RuntimeError, "compression=", run=lambda: hvd_compress.TopK().compress(mine(64, 64)))


def wrapped_by_the_user() -> None:
    """A compressor inside one of the user's own is found all the same."""

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner, self.calls = inner, 0

        def compress(self, tensor: torch.Tensor) -> Any:
            self.calls += 1
            return self.inner.compress(tensor)

        def decompress(self, tensor: torch.Tensor, ctx: Any) -> Any:
            return self.inner.decompress(tensor, ctx)

    counting = Counting(hvd_compress.Dense())
    for left, right in zip(
        _trained(counting, "op", hvd.Sum), _trained(hvd.Compression.none, "op", hvd.Sum), strict=True
    ):
        torch.testing.assert_close(left, right)
    assert counting.calls == 4 * 5


SCENARIOS = [
    table_is_complete,
    functions_and_arguments,
    optimizers_and_arguments,
    autograd_is_horovods,
    second_derivatives,
    no_gradient_is_wanted,
    three_threads,
    shared_randomness_in_threads,
    ranks_that_differ_outside,
    called_by_hand,
    wrapped_by_the_user,
]

if __name__ == "__main__":
    main(SCENARIOS)
