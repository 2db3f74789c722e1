"""Scenarios: ranks with fewer batches than others call ``hvd.join()``."""

from __future__ import annotations

from functools import partial
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import expect, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, digest, network, optimizer, scaled_step, train


def uneven(compression: Any) -> list[torch.Tensor]:
    """Return rank 0's weights after steps of its own and such that all ranks take part in, before them and after."""
    model = network()
    opt = optimizer(model, compression, lr=0.05)
    train(model, opt, steps=3)
    if hvd.rank() == 0:
        train(model, opt, steps=3, first=3)
    hvd.join()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    train(model, opt, steps=3, first=6)
    assert_replicas_equal(model)
    return [parameter.detach().clone() for parameter in model.parameters()]


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def joining_is_as_without_compression() -> None:
    expected = uneven(hvd.Compression.none)
    for compression, bound in ((hvd_compress.Dense(), 1e-6), (hvd_compress.QSGDMaxNorm(16), 1e-3)):
        for mine, parameter in zip(uneven(compression), expected, strict=True):
            torch.testing.assert_close(mine, parameter, rtol=0, atol=bound)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def joining_is_refused() -> None:
    """On every rank that asks for it, and before anybody waits: training goes on as if nobody had asked."""
    for name in ("topk", "randk-maxnorm", "half", "auto"):
        model, compression = network(), hvd_compress.from_config(name)
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        expect(RuntimeError, "hvd.join()", type(compression).__name__, "Dense", run=hvd.join)
        train(model, opt, steps=2, first=2)
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["gloo 2"])
def joining_is_refused_where_the_others_cannot_be_told() -> None:
    """With groups, and in a step that has begun: at once, and the step that the others are in is as it would be."""
    for keywords in ({}, {"groups": 2}):
        digests = set()
        for asks in (False, True):
            model = network()
            opt = optimizer(model, hvd_compress.TopK(0.05), **keywords)
            train(model, opt, steps=2)

            def ask(_: int, asks: bool = asks) -> None:
                if asks and hvd.rank() == 0:
                    expect(RuntimeError, "hvd.join()", "TopK", run=hvd.join)

            if keywords:
                ask(0)
            train(model, opt, steps=2, first=2, before_step=ask)
            assert_replicas_equal(model)
            digests.add(digest(model))
        assert len(digests) == 1, keywords


@scenario("mpirun 2", long=["gloo 2"])
def joining_is_refused_before_a_loss_scale_is_looked_at() -> None:
    """The ranks hear it when gradients are synchronized: no scale changes, and all go on."""
    model, compression = network(), hvd_compress.SIDCo(0.05)
    opt = optimizer(model, compression)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    compression.use_grad_scaler(scaler)

    step = partial(scaled_step, model, opt, scaler)
    step(0)
    expect(RuntimeError, "hvd.join()", "SIDCo", run=hvd.join if hvd.rank() == 0 else partial(step, 1))
    assert scaler.get_scale() == 1024.0
    before = digest(model)
    for t in (1, 2):
        step(t)
    assert digest(model) != before
    assert_replicas_equal(model)


REFUSED = (
    {"name": "topk"},
    {"name": "half"},
    {"name": "half", "nonfinite": "nan"},
    {"name": "randk-maxnorm"},
    {"name": "lgc"},
    {"name": "dgc"},  # has a momentum of what it leaves to Horovod, too
    {"name": "sidco", "nonfinite": "zero"},
)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def joining_is_refused_on_every_rank() -> None:
    """Also on those that have more batches, whose next step would wait for the one that has not. It leaves no trace:
    all go on with the same optimizer, and the gradients of the one that asked stay what they are."""
    for configuration in REFUSED:
        model, compression = network(), hvd_compress.from_config(configuration)
        opt = optimizer(model, compression, lr=0.05)
        train(model, opt, steps=2)
        before = [parameter.grad.clone() for parameter in model.parameters()], memory(compression)
        weights = [parameter.detach().clone() for parameter in model.parameters()]

        def go_on(model: Any = model, opt: Any = opt) -> None:
            if hvd.rank() == 0:
                hvd.join()
            train(model, opt, steps=1, first=2)

        expect(RuntimeError, "hvd.join()", type(compression).__name__, run=go_on)
        assert same(before[1], memory(compression)), configuration
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True)), configuration
        if hvd.rank() == 0:
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before[0], strict=True))
        train(model, opt, steps=2, first=2)
        assert_replicas_equal(model)
        moved = any(not torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
        assert moved, configuration


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def joining_before_the_first_step_is_refused_on_every_rank() -> None:
    """A rank that has no data at all, whose compressor has seen no gradient yet."""
    for configuration in ({"name": "topk"}, {"name": "half"}):
        model, compression = network(), hvd_compress.from_config(configuration)
        opt = optimizer(model, compression, lr=0.05)

        def go_on(model: Any = model, opt: Any = opt) -> None:
            if hvd.rank() == 0:
                hvd.join()
            train(model, opt, steps=1)

        expect(RuntimeError, "hvd.join()", type(compression).__name__, run=go_on)
        train(model, opt, steps=2)
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["gloo 2"])
def joining_is_horovod_s_own_where_nothing_is_compressed() -> None:
    expected = uneven(hvd.Compression.none)
    for mine, parameter in zip(uneven(hvd_compress.SIDCo(min_numel=10**9)), expected, strict=True):
        torch.testing.assert_close(mine, parameter, rtol=0, atol=1e-6)


@scenario("alone 1")
def a_rank_alone_joins() -> None:
    model = network()
    opt = optimizer(model, hvd_compress.SIDCo())
    train(model, opt, steps=1)
    hvd.join()
    train(model, opt, steps=1, first=1)
