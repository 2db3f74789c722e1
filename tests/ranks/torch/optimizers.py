"""Scenarios: every way of using Horovod's PyTorch optimizer, 50 steps each, replicas bitwise equal at the end."""

from __future__ import annotations

import copy
import time
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from tests.ranks.checks import expect, learns, memory, same
from tests.ranks.process_sets import process_set
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import (
    STEPS,
    assert_replicas_equal,
    batches,
    digest,
    network,
    optimizer,
    scaled_step,
    train,
)


def sidco(**keywords: Any) -> hvd_compress.SIDCo:
    return hvd_compress.SIDCo(0.05, bucket_mb=0.05, **keywords)


EVERYWHERE = ("mpirun 2", "mpirun 4", "horovodrun 2", "gloo 2", "alone 1")
SEVERAL = EVERYWHERE[:-1]
"""Horovod registers no hooks when it is alone, so the compressor is never called there."""


@scenario("mpirun 2", "mpirun 4", "gloo 2", "alone 1", long=EVERYWHERE)
def dense_matches_horovod() -> None:
    digests = []
    for compression in (hvd.Compression.none, hvd_compress.Dense(bucket_mb=0.05)):
        model = network()
        learns(train(model, optimizer(model, compression)))
        assert_replicas_equal(model)
        digests.append(digest(model))
    if hvd.size() <= 2:  # beyond that the order of a sum depends on how Horovod fused it
        assert digests[0] == digests[1]


@scenario("mpirun 2", long=EVERYWHERE)
def every_compressor() -> None:
    for name in hvd_compress.compressor_names():
        model = network()
        compression = hvd_compress.from_config({"name": name, "bucket_mb": 0.05})
        train(model, optimizer(model, compression, lr=0.02))
        assert_replicas_equal(model)


@scenario(long=EVERYWHERE)
def fits_and_wires() -> None:
    for fit in ("exponential", "gamma-pareto", "pareto"):
        for wire in ("bfloat16", "float16"):
            for stages in ("auto", "adaptive", 2):
                model = network()
                learns(train(model, optimizer(model, sidco(fit=fit, wire=wire, stages=stages))))
                assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def without_names() -> None:
    model = network()
    learns(train(model, optimizer(model, sidco(), named_parameters=None)))
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def groups_int() -> None:
    model = network()
    learns(train(model, optimizer(model, sidco(), groups=2)))
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def groups_list() -> None:
    model = network()
    groups = [[model[0].weight, model[2].weight], [model[4].weight]]
    learns(train(model, optimizer(model, sidco(), groups=groups)))
    assert_replicas_equal(model)


@scenario("mpirun 2", "alone 1", long=EVERYWHERE)
def backward_passes_per_step() -> None:
    model = network()
    opt = optimizer(model, sidco(), backward_passes_per_step=2, lr=0.15)
    losses = []
    for t, (inputs, labels) in enumerate(batches(2 * STEPS)):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        losses.append(loss.item())
        if t % 2:
            opt.step()
            opt.zero_grad()
    learns(losses)
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def fewer_passes_than_announced() -> None:
    model = network()
    opt = optimizer(model, sidco(), backward_passes_per_step=3)
    train(model, opt)  # step() after one pass: Horovod reduces in synchronize
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def waiting_asleep() -> None:
    """Horovod's ``synchronize`` looks for the others' gradients without a pause, so it is called when all is done."""
    model = network()
    opt = optimizer(model, sidco())
    synchronize = opt.synchronize
    steps = []

    def checked() -> None:
        steps.append(all(hvd.poll(handle) for handle, _ in opt._handles.values()))
        synchronize()

    opt.synchronize = checked
    for inputs, labels in batches(6):
        time.sleep(0.2 * (hvd.rank() == len(steps) % hvd.size()))  # the others wait for this one
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        opt.step()
    assert steps == [True] * 6
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def gradient_predivide_factor() -> None:
    digests = []
    for factor in (1.0, 2.0):  # a power of two: the biases that Horovod averages stay exact
        model = network()
        learns(train(model, optimizer(model, sidco(), gradient_predivide_factor=factor)))
        assert_replicas_equal(model)
        digests.append(digest(model))
    assert digests[0] == digests[1]  # our mean is computed apart from Horovod's scaling


@scenario("mpirun 2", "mpirun 4", long=EVERYWHERE)
def op_sum() -> None:
    model = network()
    opt = optimizer(model, sidco(), op=hvd.Sum, lr=0.3 / hvd.size())
    learns(train(model, opt))
    assert_replicas_equal(model)
    summed, averaged = network(), network()
    train(summed, optimizer(summed, sidco(), op=hvd.Sum, lr=0.5), steps=1)
    train(averaged, optimizer(averaged, sidco(), lr=0.5 * hvd.size()), steps=1)
    for left, right in zip(summed.parameters(), averaged.parameters(), strict=True):
        torch.testing.assert_close(left, right)


@scenario("mpirun 2", long=SEVERAL, last=True)
def op_adasum() -> None:
    model = network()
    opt = optimizer(model, sidco(), op=hvd.Adasum)
    expect(ValueError, "Adasum", "hvd.Average", run=lambda: train(model, opt, steps=1))


@scenario("mpirun 2", long=EVERYWHERE)
def clipping() -> None:
    model = network()
    opt = optimizer(model, sidco())
    for inputs, labels in batches(STEPS):
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        opt.synchronize()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm.isfinite()
        with opt.skip_synchronize():
            opt.step()
    assert_replicas_equal(model)


class Branching(torch.nn.Module):
    """Uses another branch on every other rank, so that gradients are missing there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Linear(64, 64)
        self.branches = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(2))
        self.head = torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.branches[hvd.rank() % 2](torch.relu(self.stem(x)))))


@scenario("mpirun 2", "mpirun 4", long=EVERYWHERE)
def missing_gradients() -> None:
    model = Branching()
    opt = optimizer(model, sidco())
    train(model, opt)
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def frozen_parameters() -> None:
    model = network()
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    before = model[2].weight.clone()
    learns(train(model, optimizer(model, sidco())))
    assert torch.equal(before, model[2].weight)
    assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def zero_grad_either_way() -> None:
    digests = []
    for to_none in (True, False):
        model = network()
        opt = optimizer(model, sidco())
        for inputs, labels in batches(STEPS):
            model.zero_grad(set_to_none=to_none)
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
        assert_replicas_equal(model)
        digests.append(digest(model))
    assert digests[0] == digests[1]


@scenario("mpirun 2", long=EVERYWHERE)
def two_models() -> None:
    models = [network(seed) for seed in (0, 1)]
    opts = [
        optimizer(models[0], sidco(), named_parameters="first."),
        optimizer(models[1], hvd_compress.TopK(0.1), named_parameters="second."),
    ]
    for inputs, labels in batches(STEPS):
        for opt in opts:
            opt.zero_grad()
        total = sum(torch.nn.functional.cross_entropy(model(inputs), labels) for model in models)
        total.backward()
        for opt in opts:
            opt.step()
    for model in models:
        assert_replicas_equal(model)


@scenario("mpirun 2", "gloo 2")
def two_models_whose_first_gradients_come_in_another_order_on_every_rank() -> None:
    """Whichever model a rank begins with, its gradients meet those of the same model."""
    models = [network(seed) for seed in (0, 1)]
    opts = [
        optimizer(models[0], hvd_compress.TopK(0.1), named_parameters="left."),
        optimizer(models[1], hvd_compress.TopK(0.2), named_parameters="right."),
    ]
    for inputs, labels in batches(STEPS):
        for opt in opts:
            opt.zero_grad()
        for model in models if hvd.rank() == 0 else models[::-1]:
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        for opt in opts:
            opt.step()
    for model in models:
        assert_replicas_equal(model)


@scenario("mpirun 2", long=SEVERAL, last=True)
def one_compressor_for_two_optimizers() -> None:
    compression = sidco()
    models = [network(seed) for seed in (0, 1)]
    opts = [optimizer(model, compression, named_parameters=f"{i}.") for i, model in enumerate(models)]
    train(models[0], opts[0], steps=2)
    inputs, labels = next(batches(1))
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(models[1](inputs), labels)
        expect(ValueError, "already serves another optimizer", "for each optimizer", "gc.collect()", run=loss.backward)


@scenario("mpirun 2", "mpirun 4", long=SEVERAL)
def in_a_process_set() -> None:
    members = list(range(0, hvd.size(), 2))
    chosen = process_set(*members)
    model = network()
    compression = sidco()
    opt = optimizer(model, compression, process_set=chosen)
    if hvd.rank() in members:
        train(model, opt)
        assert compression.stats()["total"]["steps"] == STEPS
    assert_replicas_equal(model, members)


@scenario("mpirun 2", long=EVERYWHERE)
def half_precision_gradients() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = network().to(dtype)
        opt = optimizer(model, sidco())
        train(model, opt, dtype=dtype)
        assert all(p.grad.dtype == dtype for p in model.parameters() if p.grad is not None)
        assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def double_precision_gradients() -> None:
    model = network().to(torch.float64)
    learns(train(model, optimizer(model, sidco()), dtype=torch.float64))
    assert_replicas_equal(model)


@scenario("mpirun 2", "gloo 2", long=["horovodrun 2", *SEVERAL])
def overflow_in_a_weight() -> None:
    _overflow(lambda model: model[2].weight)


@scenario("mpirun 2", long=SEVERAL)
def overflow_in_the_first_layer() -> None:
    _overflow(lambda model: model[0].weight)


@scenario("mpirun 2", long=SEVERAL)
def overflow_in_a_bias() -> None:
    for layer in (0, 2, 6):
        _overflow(lambda model, layer=layer: model[layer].bias)


@scenario("mpirun 2", long=SEVERAL)
def nan_in_the_first_step() -> None:
    _overflow(lambda model: model[2].weight, at=0, value=float("nan"))


def _overflow(pick: Any, at: int = 20, value: float = float("inf")) -> None:
    """A GradScaler job in which the last rank alone overflows once, in one parameter."""
    model = network()
    compression = sidco()
    opt = optimizer(model, compression)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for t in range(STEPS):
        before, weights, scale = memory(compression) if t else {}, digest(model), scaler.get_scale()
        handle = None
        if t == at and hvd.rank() == hvd.size() - 1:
            handle = pick(model).register_hook(lambda gradient: torch.full_like(gradient, value))
        scaled_step(model, opt, scaler, t)
        if t == at:
            assert scaler.get_scale() < scale, "the step was not skipped"
            assert digest(model) == weights, "the weights moved"
            after, unit = memory(compression), np.float32(scaler.get_scale() / scale)
            before = {name: array * unit for name, array in before.items()}  # in that of the next gradients
            assert same(before, after) if t else not any(array.any() for array in after.values())
            if handle is not None:
                handle.remove()
    assert compression.stats()["total"]["skipped_steps"] == 1
    assert_replicas_equal(model)


@scenario("mpirun 2", "gloo 2", long=["horovodrun 2", *SEVERAL])
def resume_is_bitwise() -> None:
    whole, compression = network(), sidco()
    train(whole, optimizer(whole, compression))
    half, first = network(), sidco()
    train(half, optimizer(half, first), steps=20)
    saved = copy.deepcopy((half.state_dict(), first.state_dict()))
    resumed, second = network(7), sidco()
    resumed.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    train(resumed, optimizer(resumed, second), steps=STEPS - 20, first=20)
    assert digest(resumed) == digest(whole)
    assert same(memory(second), memory(compression))


@scenario("mpirun 2", long=SEVERAL)
def resume_after_the_first_step() -> None:
    whole, compression = network(), sidco()
    train(whole, optimizer(whole, compression), steps=5)
    half, first = network(), sidco()
    train(half, optimizer(half, first), steps=1)
    resumed, second = network(7), sidco()
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    train(resumed, optimizer(resumed, second), steps=4, first=1)
    assert digest(resumed) == digest(whole)


@scenario("mpirun 2", long=SEVERAL)
def flush_then_checkpoint_on_rank_0() -> None:
    model, compression = network(), sidco()
    opt = optimizer(model, compression)

    def flush(t: int) -> None:
        if t == 18 and hvd.rank() == 0:  # the next step's backward pass is the first to know; any one rank may ask
            compression.flush()

    train(model, opt, steps=20, before_step=flush)
    assert not any(array.any() for array in memory(compression).values())
    checkpoint = copy.deepcopy((model.state_dict(), compression.state_dict())) if hvd.rank() == 0 else None
    train(model, opt, steps=10, first=20)

    weights, state = hvd.broadcast_object(checkpoint, root_rank=0, name="saved")
    resumed, second = network(7), sidco()
    resumed.load_state_dict(weights)
    second.load_state_dict(state)
    train(resumed, optimizer(resumed, second), steps=10, first=20)
    assert digest(resumed) == digest(model)


@scenario("mpirun 2", long=SEVERAL, last=True)
def one_ranks_state_for_all_is_refused() -> None:
    model, compression = network(), sidco()
    train(model, optimizer(model, compression), steps=3)
    saved = hvd.broadcast_object(compression.state_dict() if hvd.rank() == 0 else None, root_rank=0, name="saved")
    other, second = network(), sidco()
    second.load_state_dict(saved)
    opt = optimizer(other, second)
    expect(ValueError, "flush()", "rank 1", run=lambda: train(other, opt, steps=1))


@scenario("mpirun 2", long=SEVERAL, last=True)
def one_rank_s_state_is_damaged() -> None:
    """Both ranks raise the same error, which names the rank and the file."""
    model, compression = network(), sidco()
    train(model, optimizer(model, compression), steps=3)
    state = compression.state_dict()
    if hvd.rank() == 1:
        next(iter(state["memory"].values()))["residual"][0] += 1
    other, second = network(), sidco()
    second.load_state_dict(state, source=f"checkpoint-{hvd.rank()}.pt")
    opt = optimizer(other, second)
    expect(ValueError, "rank 1: checkpoint-1.pt: the state is damaged", run=lambda: train(other, opt, steps=1))


@scenario("mpirun 2", long=SEVERAL, last=True)
def ranks_that_disagree() -> None:
    model = network()
    compression = hvd_compress.TopK(0.1 if hvd.rank() == 0 else 0.2)
    opt = optimizer(model, compression)
    expect(ValueError, "ranks disagree on the compressor", "0.2", run=lambda: train(model, opt, steps=1))
    model = network()
    other = sidco() if hvd.rank() == 0 else hvd_compress.Dense()
    expect(Exception, run=lambda: train(model, optimizer(model, other), steps=1))


@scenario("mpirun 2", long=EVERYWHERE)
def allreduce_outside_an_optimizer() -> None:
    base = torch.arange(4096.0).view(64, 64)
    mine = base * (hvd.rank() + 1)
    compression = hvd_compress.TopK(0.5)
    mean = (hvd.size() + 1) / 2

    def outside(tensor: torch.Tensor, by: Any = compression) -> torch.Tensor:
        return hvd.allreduce(tensor, name="odd", compression=by)

    for op, factor in ((None, 1), (hvd.Average, 1), (hvd.Sum, hvd.size())):
        result = hvd.allreduce(mine, name="outside", compression=compression, op=op)
        torch.testing.assert_close(result[32:], base[32:] * mean * factor)
        assert not result[:31].any()
    whole = outside(mine, hvd_compress.DGC(1.0, clip=0.1))  # which is for gradients
    torch.testing.assert_close(whole, base * mean)
    outputs = hvd.grouped_allreduce([mine, -mine], name="grouped", compression=compression)
    torch.testing.assert_close(outputs[0], -outputs[1])
    expect(ValueError, "op", run=lambda: hvd.allreduce(mine, name="m", compression=compression, op=hvd.Max))
    expect(TypeError, "int64", run=lambda: outside(torch.ones(64, 64, dtype=torch.int64)))
    expect(TypeError, "already serves PyTorch", run=lambda: compression.compress(mine.numpy()))
    odd = torch.ones(64, 64, dtype=torch.int64 if hvd.rank() == 1 else torch.float32)
    error = TypeError if hvd.rank() == 1 else ValueError
    expect(error, "int64" if hvd.rank() == 1 else "ranks disagree on odd", run=lambda: outside(odd))
    seeded = hvd_compress.RandKMaxNorm(lambda step: 0.5, seed=hvd.rank())
    expect(ValueError, "ranks disagree on odd", run=lambda: outside(mine, seeded))
    small = hvd.allreduce(torch.ones(3) * (hvd.rank() + 1), name="small", compression=compression)
    torch.testing.assert_close(small, torch.ones(3) * mean)


@scenario("mpirun 2", long=EVERYWHERE)
def allreduce_beside_training() -> None:
    model, compression = network(), sidco()
    opt = optimizer(model, compression)
    train(model, opt, steps=3)
    outside = hvd.allreduce(torch.ones(64, 64), name="beside", compression=compression)
    assert set(outside.unique().tolist()) <= {0.0, 1.0}
    train(model, opt, steps=3, first=3)
    assert_replicas_equal(model)


@scenario("mpirun 2", "alone 1", long=EVERYWHERE)
def embeddings() -> None:
    for sparse, as_dense in ((False, False), (True, True), (True, False)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Embedding(200, 32, sparse=sparse), torch.nn.Flatten(), torch.nn.Linear(128, 32)
        )
        opt = optimizer(model, sidco(), sparse_as_dense=as_dense)
        for t in range(STEPS):
            generator = torch.Generator().manual_seed(1000 * t + hvd.rank())
            words = torch.randint(0, 200, (16, 4), generator=generator)
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(words), words.sum(1) % 32).backward()
            opt.step()
        assert_replicas_equal(model)


@scenario("mpirun 2", long=EVERYWHERE)
def channels_last() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 32, 3), torch.nn.Flatten(), torch.nn.Linear(32 * 36, 10))
    model = model.to(memory_format=torch.channels_last)
    opt = optimizer(model, sidco())
    for inputs, labels in batches(STEPS):
        opt.zero_grad()
        images = inputs.view(-1, 1, 8, 8).expand(-1, 8, 8, 8).contiguous(memory_format=torch.channels_last)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        opt.step()
    assert_replicas_equal(model)


@scenario("mpirun 2", long=SEVERAL)
def statistics() -> None:
    model, compression = network(), sidco()
    opt = optimizer(model, compression)
    train(model, opt, steps=10)
    stats = compression.stats()
    numel = sum(p.numel() for p in model.parameters())
    assert stats["total"]["steps"] == 10
    assert stats["total"]["dense_bytes"] == 40 * numel
    assert stats["total"]["ratio"] > 5
    assert 0.5 < stats["total"]["achieved"] <= 1.3
    assert set(stats["total"]["seconds"]) == {"compress", "wait", "decompress"}
    assert all(value > 0 for value in stats["total"]["seconds"].values())
    assert compression.stats()["recent"]["steps"] == 0
    train(model, opt, steps=2, first=10)
    assert compression.stats()["recent"]["steps"] == 2


@scenario("mpirun 2", "alone 1", long=EVERYWHERE)
def explicit_bind() -> None:
    model, compression = network(), sidco()
    opt = optimizer(model, compression)
    compression.bind(opt)
    learns(train(model, opt))
    assert_replicas_equal(model)
    expect(TypeError, "DistributedOptimizer", run=lambda: sidco().bind(torch.optim.SGD(model.parameters(), lr=1)))


@scenario("mpirun 2", long=SEVERAL)
def compressor_outlives_its_optimizer() -> None:
    model, compression = network(), sidco()
    train(model, optimizer(model, compression), steps=3)
    stats = compression.stats()
    assert stats["total"]["steps"] == 3
