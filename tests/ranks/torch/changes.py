"""Scenarios: what changes while a job trains: the optimizer, the layers that train, gradient objects, copies."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from tests.ranks.checks import expect, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.optimizers import sidco
from tests.ranks.torch.oracle import Ledger, backward, beside_horovod, logged, loss_of
from tests.ranks.torch.training import assert_replicas_equal, batches, digest, network, optimizer, train


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


def freeze(layer: torch.nn.Module, frozen: bool) -> None:
    for parameter in layer.parameters():
        parameter.requires_grad_(not frozen)
        parameter.grad = None


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def frozen_among_others() -> None:
    """In a bucket that is transformed as a whole: a layer that all ranks have frozen does not move, and one that some
    train still is the same on all. No size here is a multiple of what is transformed together."""
    inner = hvd_compress.FFT(0.1)
    for make in (
        lambda: hvd_compress.FFT(0.1),
        lambda: hvd_compress.TwoLevel(inner, ranks_per_node=hvd.size()),
        lambda: hvd_compress.DGC(0.1, weight_decay=0.1),
    ):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(n, m) for n, m in ((64, 60), (60, 60), (60, 10))]
        model, compression = torch.nn.Sequential(*layers), make()
        opt = optimizer(model, compression, lr=0.1)
        train(model, opt, steps=3)
        held, before = memory(compression), copy.deepcopy(layers[1].state_dict())
        freeze(layers[1], True)
        train(model, opt, steps=5, first=3)
        assert all(torch.equal(before[name], after) for name, after in layers[1].state_dict().items())
        after = memory(compression)
        assert all(np.array_equal(after[name], array) for name, array in held.items() if name.startswith("1."))
        freeze(layers[1], hvd.rank() == 0)
        train(model, opt, steps=3, first=8)
        assert_replicas_equal(model)
        assert not torch.equal(before["weight"], layers[1].weight)
        freeze(layers[1], False)
        train(model, opt, steps=1, first=11)
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def a_new_optimizer_beside_the_hooks_of_the_old_one() -> None:
    """Each attempt says what to do; who does it goes on with the same memory."""
    for keywords in ({}, {"groups": 1}):
        model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
        opt = optimizer(model, compression, lr=0.1, **keywords)
        train(model, opt, steps=3)
        held = memory(compression)
        gc.disable()
        del opt
        opt = optimizer(model, compression, lr=0.1, **keywords)
        gc.enable()
        for t in range(3):
            expect(ValueError, "gc.collect()", run=lambda: train(model, opt, steps=1, first=t))  # noqa: B023
        del opt
        torch.zeros(1, requires_grad=True).sum().backward()
        while gc.collect():
            pass
        opt = optimizer(model, compression, lr=0.1, **keywords)
        compression.bind(opt)
        assert same(memory(compression), held)
        train(model, opt, steps=2, first=3)
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def every_compressor_moves() -> None:
    for name in hvd_compress.compressor_names():
        if name == "auto":
            continue  # it times the steps of one set of parameters, and says so
        model, compression = network(), hvd_compress.from_config({"name": name, "bucket_mb": 0.05})
        for parameters in (model[0], model[2]):
            parameters.weight.requires_grad_(False)
            opt = optimizer(model, compression, lr=0.02)
            train(model, opt, steps=3)
            del opt
            gc.collect()
            parameters.weight.requires_grad_(True)
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def one_tensor_for_two_gradients() -> None:
    """As with Horovod alone; and with a compressor that holds back, each parameter gets what was sent for it."""

    def run(compression: Any, **keywords: Any) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(torch.zeros(64, 32)) for _ in range(3)]
        sgd, named = torch.optim.SGD(weights, lr=1.0), [(f"{number}", weight) for number, weight in enumerate(weights)]
        opt = hvd.DistributedOptimizer(sgd, named_parameters=named, compression=compression, **keywords)
        for t in range(6):
            opt.zero_grad()
            if t == 5 and isinstance(compression, hvd_compress.TopK):
                compression.flush()
            generator = torch.Generator().manual_seed(10 * t + hvd.rank())
            gradients = [torch.randn(64, 32, generator=generator) for _ in weights]
            if t % 2:
                gradients[2] = gradients[0]
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            opt.step()
        return [weight.detach() for weight in weights]

    for keywords in ({}, {"groups": 1}):
        plain = run(hvd.Compression.none, **keywords)
        for make in (hvd_compress.Dense, lambda: hvd_compress.TopK(1.0), lambda: hvd_compress.TopK(0.05)):
            for left, right in zip(run(make(), **keywords), plain, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def what_is_no_compressor() -> None:
    model = network()
    opt = optimizer(model, hvd_compress.SIDCo)
    expect(TypeError, "SIDCo(", run=lambda: train(model, opt, steps=1))
    expect(TypeError, "SIDCo(", run=lambda: hvd.allreduce(torch.ones(64, 64), compression=hvd_compress.SIDCo))


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def copied_and_pickled() -> None:
    model, compression = network(), sidco()
    train(model, optimizer(model, compression), steps=2)
    for twin in (copy.deepcopy(compression), pickle.loads(pickle.dumps(compression))):
        assert twin.to_config() == compression.to_config()
        other = network()
        train(other, optimizer(other, twin), steps=2)
        assert digest(other) == digest(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def gradients_that_are_kept() -> None:
    """Whoever keeps the last step's gradients finds them as they were, while the next steps go on."""
    for number, (to_none, half, op) in enumerate(
        (to_none, half, op) for to_none in (True, False) for half in (False, True) for op in (hvd.Average, hvd.Sum)
    ):
        model = network().to(torch.float16 if half else torch.float32)
        opt = optimizer(model, hvd_compress.TopK(0.05), lr=1e-3, op=op, named_parameters=f"{number}.")
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for inputs, labels in batches(5, dtype=torch.float16 if half else torch.float32):
            if not to_none:  # the next gradients are added up where the last ones are
                kept.clear()
            model.zero_grad(set_to_none=to_none)
            torch.nn.functional.cross_entropy(model(inputs).float(), labels).backward()
            opt.synchronize()
            assert all(torch.equal(now, then) for now, then in kept)
            kept += [(p.grad.detach(), p.grad.clone()) for p in model.parameters()]
            with opt.skip_synchronize():
                opt.step()
            assert all(torch.equal(now, then) for now, then in kept)


class Scale:
    """A loss scale, as a GradScaler has one."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def resumed_under_another_loss_scale() -> None:
    model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
    compression.use_grad_scaler(Scale(4.0))
    train(model, optimizer(model, compression), steps=3)
    state, held = compression.state_dict(), memory(compression)
    for scale in (16.0, 4.0, 1.0):
        again = hvd_compress.TopK(0.05, bucket_mb=0.05)
        again.use_grad_scaler(Scale(scale))
        again.load_state_dict(state)
        again.bind(optimizer(network(), again))
        after = memory(again)
        assert all(np.array_equal(after[name], array * np.float32(scale / 4)) for name, array in held.items())
