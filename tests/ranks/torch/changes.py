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
from tests.ranks.checks import expect, memory
from tests.ranks.scenario import scenario
from tests.ranks.torch.optimizers import sidco
from tests.ranks.torch.oracle import Ledger, backward, beside_horovod, logged, loss_of
from tests.ranks.torch.training import assert_replicas_equal, digest, network, optimizer, train


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
