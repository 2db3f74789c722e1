"""Scenarios: gradients that are not finite, and loss scales."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from tests.ranks.checks import memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.optimizers import sidco
from tests.ranks.torch.oracle import backward, logged
from tests.ranks.torch.training import assert_replicas_equal, batches, digest, network, optimizer, scaled_step, train


def moves(compression: Any, make: Callable[[Any], Any], scaled: bool, value: float) -> None:
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
            unit = np.float32(scaler.get_scale() / 256.0 if scaled else 1.0)
            assert same(memory(compression), {name: array * unit for name, array in before[2].items()})
            assert not all(p.grad.isfinite().all() for p in model.parameters())
            assert not scaled or scaler.get_scale() < 256.0
        else:
            assert digest(model) != before[0]
        if handle is not None:
            handle.remove()
    assert compression.stats()["total"]["skipped_steps"] == 1
    assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def a_step_that_is_not_finite_is_none() -> None:
    makes = (
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.Adam(parameters, 0.01),
    )
    for make in makes:
        for scaled in (False, True):
            moves(sidco(), make, scaled, float("nan"))
    moves(hvd_compress.Dense(), makes[0], False, float("inf"))


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def nothing_is_compressed() -> None:
    """All parameters are small: steps end, and one that is not finite is none, as with a compressed parameter."""
    makes = (hvd_compress.TopK, hvd_compress.DGC, hvd_compress.Dense)
    for number, (make, choice) in enumerate((make, choice) for make in makes for choice in ("skip", "zero")):
        torch.manual_seed(0)
        model, compression = torch.nn.Linear(8, 4), make(nonfinite=choice)
        opt = optimizer(model, compression, lr=0.1, named_parameters=f"{number}.")
        for t in range(5):
            opt.zero_grad()
            before, held = digest(model), memory(compression) if t else {}
            factor = float("inf") if t == 3 and hvd.rank() == 1 else 1.0
            (model(torch.ones(3, 8)).sum() * factor).backward()
            opt.step()
            assert (digest(model) == before) is (t == 3)
            assert same(memory(compression), held) is (t == 3 or make is not hvd_compress.DGC)
            assert compression.state_dict()["step"] == compression.stats()["total"]["steps"] == t + 1
        assert all(p.isfinite().all() for p in model.parameters())
        assert compression.stats()["total"]["skipped_steps"] == 1
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def float64_beyond_float32() -> None:
    """The rank whose gradient it is says so; the step is skipped on all, also where the ranks only sum."""
    for number, compression in enumerate((hvd_compress.TopK(1.0), hvd_compress.Dense())):
        weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.float64))
        sgd = torch.optim.SGD([weight], lr=1.0)
        opt = hvd.DistributedOptimizer(sgd, named_parameters=[(f"w{number}", weight)], compression=compression)
        for factor in (1.0, 1e39, float("inf"), 1.0):
            opt.zero_grad()
            with logged() as lines:
                (weight * (factor if hvd.rank() else 1.0)).sum().backward()
                opt.step()
            assert len(lines) == (factor == 1e39 and hvd.rank() == 1)
            assert all(f"'w{number}'" in line for line in lines)
        assert torch.equal(weight, torch.full_like(weight, -2.0))
    with logged() as lines:
        hvd.allreduce(torch.full((64, 32), 1e39, dtype=torch.float64), name="x", compression=compression)
    assert len(lines) == 1
    assert "'x'" in lines[0]


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def a_loss_scale_that_changes() -> None:
    """Powers of two change nothing at all, whether the compressor is told of the scaler at the beginning, later or not
    at all: then it finds the one that makes the steps."""
    results, changing = [], [4.0, 4.0, 8.0, 2.0, 2.0, 2.0**40, 1.0, 1.0]
    for scales, told in (([1.0] * 8, 0), (changing, 0), (changing, 3), (changing, None)):
        model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        opt = optimizer(model, compression)
        for t, scale in enumerate(scales):
            if t == told:
                compression.use_grad_scaler(scaler)
            scaler.update(new_scale=scale) if t else scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
            opt.zero_grad()
            ((inputs, labels),) = batches(1, t)
            scaler.scale(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
            opt.synchronize()
            scaler.unscale_(opt)
            with opt.skip_synchronize():
                scaler.step(opt)
        results.append((digest(model), memory(compression)))
    for trained, held in results[1:]:
        assert trained == results[0][0]
        assert same(held, results[0][1])


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def a_scale_that_is_halved_many_times() -> None:
    for make in (hvd_compress.Dense, sidco, lambda: hvd_compress.FFT(0.1), lambda: hvd_compress.TopK(0.01)):
        model, compression = network(), make()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=5)
        compression.use_grad_scaler(scaler)
        opt = optimizer(model, compression, lr=0.1)
        for t in range(30):
            scaled_step(model, opt, scaler, t)
        assert all(p.isfinite().all() and p.abs().max() < 10 for p in model.parameters()), compression
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def clipped_by_hand() -> None:
    """``synchronize``, a clip and ``skip_synchronize``: nothing moves, although the clip makes every gradient NaN."""
    for choice in ("skip", "zero"):
        model, compression = network(), sidco(nonfinite=choice)
        opt = optimizer(model, compression)
        for t in range(5):
            opt.zero_grad()
            before = digest(model)
            backward(model, t, float("nan") if t == 3 and hvd.rank() == 1 else 1.0)
            opt.synchronize()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert bool(norm.isfinite()) is (t != 3 or choice == "zero")
            with opt.skip_synchronize():
                opt.step()
            assert (digest(model) == before) is (t == 3)
        assert compression.stats()["total"]["skipped_steps"] == 1
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def sparse_gradients() -> None:
    """Whether Horovod gathers them or makes them dense, and whether they are not finite alone or all gradients are."""
    for number, (choice, as_dense, alone) in enumerate(
        (choice, as_dense, alone)
        for choice in ("skip", "zero", "nan")
        for as_dense in (True, False)
        for alone in (True, False)
    ):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(64, 32, sparse=True), torch.nn.Linear(32, 64))
        compression = hvd_compress.TopK(0.1, nonfinite=choice)
        opt = optimizer(model, compression, named_parameters=f"{number}.", sparse_as_dense=as_dense)
        for t in range(4):
            opt.zero_grad()
            before = digest(model)
            bad = float("nan") if t == 2 and hvd.rank() == 1 else 0.0
            words = model[0](torch.arange(4) + 4 * hvd.rank())
            (model[1](words).square().sum() + bad * (words if alone else model[1](words)).sum()).backward()
            opt.step()
            assert t == 3 or (digest(model) == before) is (t == 2 and choice != "nan")
        assert all(bool(p.isfinite().all()) is (choice != "nan") for p in model.parameters())
        assert choice == "nan" or compression.stats()["total"]["skipped_steps"] == 1
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def means_beyond_float16() -> None:
    """What is held back of finite gradients adds up to more: no weight becomes infinite, and it is said of which."""
    for number, (wire, op, skips) in enumerate(
        (("float32", hvd.Average, True), ("float16", hvd.Average, False), ("float16", hvd.Sum, True))
    ):
        weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.float16))
        compression = hvd_compress.TopK(0.25, wire=wire)
        sgd = torch.optim.SGD([weight], 1e-6)
        opt = hvd.DistributedOptimizer(sgd, named_parameters=[(f"w{number}", weight)], compression=compression, op=op)
        with logged() as lines:
            for _ in range(5):
                opt.zero_grad()
                (weight * 40_000).sum().backward()
                opt.step()
        assert (compression.stats()["total"]["skipped_steps"] > 0) is bool(lines) is skips
        assert all(f"'w{number}'" in line for line in lines)
        assert bool(weight.isfinite().all())
        assert op == hvd.Sum or bool(weight.any())
