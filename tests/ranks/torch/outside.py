"""Scenarios: ``hvd.allreduce`` with a compressor, beside plain Horovod in the same job: autograd, threads, mistakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import expect
from tests.ranks.scenario import scenario
from tests.ranks.torch.arguments import LOSSLESS, mine, process_sets, trained


def _backward(compression: Any, reduce: Callable[[torch.Tensor, Any], torch.Tensor], **leaf: Any) -> torch.Tensor:
    w = mine(64, 64, **leaf).requires_grad_()
    (reduce(w * w, compression) * mine(64, 64, salt=1) + w).sum().backward()
    assert w.grad is not None
    return w.grad


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"], first=True)
def autograd_is_horovods() -> None:
    def once(x: torch.Tensor, c: Any, **keywords: Any) -> torch.Tensor:
        result: torch.Tensor = hvd.allreduce(x, name="once", compression=c, **keywords)
        return result

    def scaled(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(x, c, op=hvd.Sum, prescale_factor=0.5, postscale_factor=3.0)

    def averaged(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(x, c)

    def in_a_set(x: torch.Tensor, c: Any) -> torch.Tensor:
        return once(x, c, op=hvd.Sum, process_set=process_sets()["half"])

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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"], first=True)
def second_derivatives() -> None:
    def penalty(compression: Any) -> torch.Tensor:
        w = mine(64, 64).requires_grad_()
        y = hvd.allreduce(w**3, name="cubes", compression=compression)
        (first,) = torch.autograd.grad((y * y).sum(), w, create_graph=True)
        first.pow(2).sum().backward()
        assert w.grad is not None
        return w.grad

    torch.testing.assert_close(penalty(hvd_compress.Dense()), penalty(hvd.Compression.none))


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"], first=True)
def no_gradient_is_wanted() -> None:
    x = mine(64, 64).requires_grad_()
    with torch.no_grad():
        assert not hvd.allreduce(x, name="x", compression=hvd_compress.Dense()).requires_grad
    assert not hvd.allreduce(x.detach(), name="x", compression=hvd_compress.Dense()).requires_grad


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def called_by_hand() -> None:
    expect(RuntimeError, "compression=", run=lambda: hvd_compress.TopK().compress(mine(64, 64)))


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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
    for left, right in zip(trained(counting, "op", hvd.Sum), trained(hvd.Compression.none, "op", hvd.Sum), strict=True):
        torch.testing.assert_close(left, right)
    assert counting.calls == 4 * 5
