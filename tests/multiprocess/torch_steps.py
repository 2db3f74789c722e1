"""Scenarios: steps that do not go as planned, beside plain Horovod in the same job."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from tests.multiprocess.checks import expect, memory, same
from tests.multiprocess.optimizers import several_ranks, sidco
from tests.multiprocess.training import assert_replicas_equal, batches, digest, main, network, optimizer, train


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


def loss_of(model: torch.nn.Module, t: int) -> Callable[[], torch.Tensor]:
    ((inputs, labels),) = batches(1, t)
    return lambda: torch.nn.functional.cross_entropy(model(inputs), labels)


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


@several_ranks
def abandoned_steps() -> None:
    """A loss turns out bad after its backward pass: back to the last good state."""

    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression)
        for at in (0, 3):
            train(model, opt, steps=at)
            good = copy.deepcopy((model.state_dict(), opt.state_dict()))
            backward(model, 7, 1e3)
            hvd.allreduce(torch.ones(1), name="all are here")  # Horovod's own reductions have come to their end
            time.sleep(0.2)
            model.load_state_dict(good[0])
            opt.load_state_dict(good[1])
            opt.zero_grad()
            train(model, opt, steps=1, first=at)
        train(model, opt, steps=3, first=4)

    beside_horovod(run)


@several_ranks
def an_abandoned_step_leaves_no_trace() -> None:
    model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
    opt, ledger = optimizer(model, compression, lr=0.1), Ledger(model, 0.1)
    for t in range(6):
        opt.zero_grad()
        if t in (0, 3):
            backward(model, 7, 1e3)
            time.sleep(0.5)
            opt.load_state_dict(opt.state_dict())
            opt.zero_grad()
        if t == 5:
            compression.flush()
        ledger.backward(loss_of(model, t))
        opt.step()
    assert compression.stats()["total"]["skipped_steps"] == 2
    ledger.check()


@several_ranks
def two_backward_passes() -> None:
    """Without ``backward_passes_per_step`` Horovod raises; afterwards one can go on from a good state."""

    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        good = opt.state_dict()
        backward(model, 2)
        expect(AssertionError, "backward_passes_per_step", run=lambda: backward(model, 3))
        time.sleep(0.3)
        opt.load_state_dict(good)
        opt.zero_grad()
        train(model, opt, steps=3, first=2)

    beside_horovod(run)


@several_ranks
def an_exception_in_backward() -> None:
    def run(model: torch.nn.Module, compression: Any) -> None:
        def explode(gradient: torch.Tensor) -> None:
            raise ArithmeticError("as it happens")

        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        good = opt.state_dict()
        handle = model[0].weight.register_hook(explode)  # all others have been handed over by then
        expect(ArithmeticError, "as it happens", run=lambda: backward(model, 2))
        handle.remove()
        time.sleep(0.3)
        opt.load_state_dict(good)
        opt.zero_grad()
        train(model, opt, steps=3, first=2)

    beside_horovod(run)


@several_ranks
def groups_and_abandoned_steps() -> None:
    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression, groups=2)
        train(model, opt, steps=2)
        good = opt.state_dict()
        backward(model, 2, 1e3)
        time.sleep(0.3)
        opt.load_state_dict(good)
        opt.zero_grad()
        train(model, opt, steps=3, first=2)

    beside_horovod(run)


@several_ranks
def frozen_and_thawed() -> None:
    model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
    opt = optimizer(model, compression, lr=0.1)
    train(model, opt, steps=4)
    held = compression.state_dict()["memory"]["2.weight"]["residual"].clone()
    assert held.norm() > 0
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    before = model[2].weight.clone()
    train(model, opt, steps=4, first=4)
    assert torch.equal(model[2].weight, before)
    torch.testing.assert_close(compression.state_dict()["memory"]["2.weight"]["residual"], held)
    for parameter in model[2].parameters():
        parameter.requires_grad_(True)
    compression.flush()
    train(model, opt, steps=1, first=8)
    assert not torch.equal(model[2].weight, before)
    assert not any(array.any() for array in memory(compression).values())
    assert_replicas_equal(model)


class Words(torch.nn.Module):
    """An embedding with sparse gradients, and an output layer of the same shape that a step may not use."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 32, sparse=True)
        self.output = torch.nn.Linear(32, 64, bias=False)
        torch.nn.init.zeros_(self.output.weight)

    def forward(self, words: torch.Tensor, head: bool) -> torch.Tensor:
        x = self.embedding(words)
        return (x * x).sum() + (self.output(x).sum() if head else 0.0)


@several_ranks
def sparse_gradients() -> None:
    """Sums are exact after a flush, whichever layers a step uses on whichever rank."""
    for as_dense, passes in ((True, 1), (True, 2), (False, 1)):
        for everywhere in (True, False):
            torch.manual_seed(0)
            model, compression = Words(), hvd_compress.TopK(0.05)
            opt = optimizer(model, compression, lr=0.1, sparse_as_dense=as_dense, backward_passes_per_step=passes)
            ledger = Ledger(model, 0.1)
            for t in range(6):
                if t == 5:
                    compression.flush()
                model.zero_grad()
                for n in range(passes):
                    generator = torch.Generator().manual_seed(10 * t + 100 * n + hvd.rank())
                    words = torch.randint(0, 64, (8,), generator=generator)
                    head = t % 3 != 2 or (not everywhere and hvd.rank() == 0)
                    ledger.backward(lambda: model(words, head))  # noqa: B023
                opt.step()
            ledger.check()


@several_ranks
def a_new_optimizer() -> None:
    """The memory moves along by name; new parameters begin with nothing."""
    model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    opt = optimizer(model, compression, lr=0.1)
    train(model, opt, steps=3)
    held = memory(compression)
    del opt
    gc.collect()
    for parameter in model[2].parameters():
        parameter.requires_grad_(True)
    opt = optimizer(model, compression, lr=0.1)
    compression.bind(opt)
    after = memory(compression)
    assert all(np.array_equal(after[name], array) for name, array in held.items())
    ledger = Ledger(model, 0.1)
    for (name, _), total in zip(model.named_parameters(), ledger.sums, strict=True):
        if f"{name}.residual" in held:
            total += torch.from_numpy(held[f"{name}.residual"]).view_as(total)
    for t in range(3, 7):
        if t == 6:
            compression.flush()
        opt.zero_grad()
        ledger.backward(loss_of(model, t))
        opt.step()
    ledger.check()


@several_ranks
def a_new_optimizer_for_less() -> None:
    model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
    opt = optimizer(model, compression)
    train(model, opt, steps=3)
    del opt
    gc.collect()
    model[4].weight.requires_grad_(False)
    opt = optimizer(model, compression)
    with logged() as lines:
        train(model, opt, steps=3, first=3)
    assert len(lines) == 1
    assert "'4.weight'" in lines[0]
    assert "norm" in lines[0]
    assert_replicas_equal(model)


@several_ranks
def every_compressor_moves() -> None:
    for name in hvd_compress.compressor_names():
        model, compression = network(), hvd_compress.from_config({"name": name, "bucket_mb": 0.05})
        for parameters in (model[0], model[2]):
            parameters.weight.requires_grad_(False)
            opt = optimizer(model, compression, lr=0.02)
            train(model, opt, steps=3)
            del opt
            gc.collect()
            parameters.weight.requires_grad_(True)
        assert_replicas_equal(model)


def _moves(compression: Any, make: Callable[[Any], Any], scaled: bool, value: float) -> None:
    """One step of five has a gradient that is not finite, in one element on one rank; nothing moves in it."""
    model = network()
    inner = make(model.parameters())
    opt = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters(), compression=compression)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
    for t in range(5):
        opt.zero_grad()
        before = digest(model), copy.deepcopy(opt.state_dict()["state"]), memory(compression) if t else {}
        handle = None
        if t == 2 and hvd.rank() == hvd.size() - 1:
            handle = model[2].bias.register_hook(lambda g: g.index_fill(0, torch.tensor([1]), value))
        ((inputs, labels),) = batches(1, t)
        scaler.scale(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
        if scaled:
            opt.synchronize()
            scaler.unscale_(opt)
            with opt.skip_synchronize():
                scaler.step(opt)
            scaler.update()
        else:
            opt.step()
        if t == 2:
            assert digest(model) == before[0]
            left, right = opt.state_dict()["state"], before[1]
            assert all(
                torch.equal(left[p][key], right[p][key]) for p in right for key in right[p] if right[p][key] is not None
            )
            assert same(memory(compression), before[2])
            assert not model[0].weight.grad.isfinite().all()
            assert not scaled or scaler.get_scale() < 256.0
        else:
            assert digest(model) != before[0]
        if handle is not None:
            handle.remove()
    assert compression.stats()["total"]["skipped_steps"] == 1
    assert_replicas_equal(model)


@several_ranks
def a_step_that_is_not_finite_is_none() -> None:
    makes = (
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.Adam(parameters, 0.01),
    )
    for make in makes:
        for scaled in (False, True):
            _moves(sidco(), make, scaled, float("nan"))
    _moves(hvd_compress.Dense(), makes[0], False, float("inf"))


@several_ranks
def what_else_nonfinite_may_be() -> None:
    for choice in ("nan", "zero"):
        model, compression = network(), sidco(nonfinite=choice)
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        before = digest(model)
        opt.zero_grad()
        handle = model[0].bias.register_hook(lambda g: g * float("nan"))
        backward(model, 2)
        handle.remove()
        opt.step()
        assert (digest(model) == before) is (choice == "zero")
        assert bool(model[2].weight.isfinite().all()) is (choice == "zero")
        assert bool(model[0].bias.isfinite().all()) is (choice == "zero")
        assert_replicas_equal(model)


@several_ranks
def a_loss_scale_that_changes() -> None:
    """With the compressor told of the scaler, powers of two change nothing at all."""
    results = []
    for scales in ([1.0] * 8, [4.0, 4.0, 8.0, 2.0, 2.0, 16.0, 1.0, 1.0]):
        model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        compression.use_grad_scaler(scaler)
        opt = optimizer(model, compression)
        for t, scale in enumerate(scales):
            scaler.update(new_scale=scale) if t else scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
            opt.zero_grad()
            ((inputs, labels),) = batches(1, t)
            scaler.scale(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
            opt.synchronize()
            scaler.unscale_(opt)
            with opt.skip_synchronize():
                scaler.step(opt)
        results.append((digest(model), memory(compression)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


@several_ranks
def a_scale_that_is_halved_many_times() -> None:
    for make in (hvd_compress.Dense, sidco, lambda: hvd_compress.FFT(0.1), lambda: hvd_compress.TopK(0.01)):
        model, compression = network(), make()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=5)
        compression.use_grad_scaler(scaler)
        opt = optimizer(model, compression, lr=0.1)
        for t in range(30):
            opt.zero_grad()
            ((inputs, labels),) = batches(1, t)
            scaler.scale(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
            opt.synchronize()
            scaler.unscale_(opt)
            with opt.skip_synchronize():
                scaler.step(opt)
            scaler.update()
        assert all(p.isfinite().all() and p.abs().max() < 10 for p in model.parameters()), compression
        assert_replicas_equal(model)


@several_ranks
def synchronized_and_discarded() -> None:
    states = []
    for probe in (False, True):
        model, compression = network(), sidco()
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        held = memory(compression)
        if probe:
            compression.discard()
            backward(model, 9)
            opt.synchronize()
            assert same(memory(compression), held)
        with logged() as lines:
            train(model, opt, steps=2, first=2)
        assert not lines
        states.append(held)
        if probe:
            with logged() as lines:
                for t in (4, 5):
                    opt.zero_grad()
                    backward(model, t)
                    opt.synchronize()
                train(model, opt, steps=1, first=6)
            assert len(lines) == 1
            assert "compression.discard()" in lines[0]
    assert same(*states)


@several_ranks
def a_gradient_object_of_the_users_own() -> None:
    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression)
        for t in range(6):
            model.zero_grad(set_to_none=t % 2 == 0)
            backward(model, t)
            for parameter in model.parameters():
                if t == 3:
                    parameter.grad = parameter.grad.clone()
            opt.step()
            for parameter in model.parameters():
                if t == 4:
                    parameter.grad = parameter.grad.detach()  # another object over the same memory

    beside_horovod(run)


def what_is_no_compressor() -> None:
    model = network()
    if hvd.size() > 1:
        opt = optimizer(model, hvd_compress.SIDCo)
        expect(TypeError, "SIDCo(", run=lambda: train(model, opt, steps=1))
    expect(TypeError, "SIDCo(", run=lambda: hvd.allreduce(torch.ones(64, 64), compression=hvd_compress.SIDCo))


@several_ranks
def copied_and_pickled() -> None:
    model, compression = network(), sidco()
    train(model, optimizer(model, compression), steps=2)
    for twin in (copy.deepcopy(compression), pickle.loads(pickle.dumps(compression))):
        assert twin.to_config() == compression.to_config()
        other = network()
        train(other, optimizer(other, twin), steps=2)
        assert digest(other) == digest(model)


SCENARIOS = [
    abandoned_steps,
    an_abandoned_step_leaves_no_trace,
    two_backward_passes,
    an_exception_in_backward,
    groups_and_abandoned_steps,
    frozen_and_thawed,
    sparse_gradients,
    a_new_optimizer,
    a_new_optimizer_for_less,
    every_compressor_moves,
    a_step_that_is_not_finite_is_none,
    what_else_nonfinite_may_be,
    a_loss_scale_that_changes,
    a_scale_that_is_halved_many_times,
    synchronized_and_discarded,
    a_gradient_object_of_the_users_own,
    what_is_no_compressor,
    copied_and_pickled,
]

if __name__ == "__main__":
    main(SCENARIOS)
