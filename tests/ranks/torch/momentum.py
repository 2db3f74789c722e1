"""Scenarios: DGC's momentum, beside the momentum of PyTorch's optimizer under plain Horovod."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.oracle import backward, close
from tests.ranks.torch.training import assert_replicas_equal, digest, network, optimizer, train


def _oracle(nesterov: bool, decay: float, **keywords: Any) -> torch.nn.Module:
    """Train with plain Horovod and the optimizer's own momentum."""
    model = network()
    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=nesterov, weight_decay=decay)
    train(model, hvd.DistributedOptimizer(sgd, model.named_parameters(), **keywords), steps=8)
    return model


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def everything_sent_is_momentum_sgd() -> None:
    """Of weights, of biases, and of a matrix that is too small to be compressed; with sums, and in groups."""
    for nesterov, decay in ((False, 0.0), (True, 0.0), (False, 0.1), (True, 0.1)):
        for keywords in ({}, {"op": hvd.Sum}, {"num_groups": 2}):
            model = network()
            compression = hvd_compress.DGC(1.0, nesterov=nesterov, weight_decay=decay, bucket_mb=0.05)
            train(model, optimizer(model, compression, lr=0.05, **keywords), steps=8)
            close(model, _oracle(nesterov, decay, **keywords))
            assert_replicas_equal(model)


def _twin(model: torch.nn.Module) -> torch.nn.Module:
    twin = network()
    twin.load_state_dict(model.state_dict())
    return twin


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def momentum_goes_on() -> None:
    """From a checkpoint; and a compressor that goes to another optimizer of the same parameters takes it along."""
    results = []
    for change in ("none", "checkpoint", "optimizer"):
        model = network()
        compression = hvd_compress.DGC(0.05, weight_decay=0.1, bucket_mb=0.05)
        opt = optimizer(model, compression, lr=0.05)
        train(model, opt, steps=4)
        if change != "none":
            model = _twin(model)
            if change == "checkpoint":
                state = compression.state_dict()
                compression = hvd_compress.DGC(0.05, weight_decay=0.1, bucket_mb=0.05)
                compression.load_state_dict(state)
            del opt
            opt = optimizer(model, compression, lr=0.05)
        train(model, opt, steps=4, first=4)
        results.append((digest(model), memory(compression)))
        assert_replicas_equal(model)
    for trained, held in results[1:]:
        assert trained == results[0][0]
        assert same(held, results[0][1])


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def a_rank_0_checkpoint_after_a_flush() -> None:
    """Serves every rank, though momentum is not cleared: it has become the same."""
    model = network()
    compression = hvd_compress.DGC(0.05, bucket_mb=0.05)
    opt = optimizer(model, compression, lr=0.05)
    train(model, opt, steps=4)
    if hvd.rank() == 0:
        compression.flush()
    train(model, opt, steps=1, first=4)
    state = hvd.broadcast_object(compression.state_dict(), 0)
    assert state["memory"]["0.weight"]["momentum"].any()
    assert not state["memory"]["0.weight"]["velocity"].any()
    digests = []
    for _ in range(2):
        twin = _twin(model)
        again = hvd_compress.DGC(0.05, bucket_mb=0.05)
        again.load_state_dict(state)
        train(twin, optimizer(twin, again, lr=0.05), steps=3, first=5)
        assert_replicas_equal(twin)
        digests.append(digest(twin))
    train(model, opt, steps=3, first=5)
    assert digests == [digest(model)] * 2


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def steps_that_leave_no_momentum() -> None:
    """One that is not finite, and one that is discarded: training is as if they had not been, but that random samples
    differ; so everything is sent."""
    models = [network(), network()]
    held = []
    for model, disturbed in zip(models, (False, True), strict=True):
        compression = hvd_compress.DGC(1.0, weight_decay=0.1, bucket_mb=0.05)
        opt = optimizer(model, compression, lr=0.05)
        for t in range(5):
            if disturbed and t == 2:
                opt.zero_grad()
                backward(model, t, float("inf"))
                opt.step()
            if disturbed and t == 3:
                compression.discard()
                opt.zero_grad()
                backward(model, t)
                opt.synchronize()
            opt.zero_grad()
            backward(model, t)
            opt.step()
        held.append(memory(compression))
    assert digest(models[0]) == digest(models[1])
    assert same(*held)
    assert {name for name in held[0] if "bias" in name} == {f"{i}.bias.mean_momentum" for i in (0, 2, 4, 6)}


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def momentum_under_a_loss_scale() -> None:
    """Powers of two change nothing at all, weight decay and clipping included."""
    results = []
    for scales in ([1.0] * 6, [4.0, 4.0, 8.0, 2.0, 2.0, 16.0]):
        model, compression = network(), hvd_compress.DGC(0.05, weight_decay=0.1, clip=0.05, bucket_mb=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        compression.use_grad_scaler(scaler)
        opt = optimizer(model, compression, lr=0.05)
        for t, scale in enumerate(scales):
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
            opt.zero_grad()
            backward(model, t, scale)
            opt.synchronize()
            for parameter in model.parameters():
                parameter.grad /= scale
            with opt.skip_synchronize():
                opt.step()
        results.append((digest(model), compression.state_dict()["memory"]["0.bias"]["mean_momentum"] / scales[-1]))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
