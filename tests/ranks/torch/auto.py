"""Scenarios: ``Auto`` changes compressors in the middle of a training, and leaves gradients to Horovod."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

from hvd_compress import Auto
from hvd_compress.drivers.torch.plain_steps import AS_IT_WAS
from tests.ranks.checks import expect, memory
from tests.ranks.clocks import Clock, go_wild
from tests.ranks.scenario import scenario
from tests.ranks.torch.nonfinite import moves
from tests.ranks.torch.training import assert_replicas_equal, batches, digest, gather, network, optimizer, train

LONG = ["mpirun 3", "mpirun 4", "mpirun 6", "gloo 2"]


def dense_alone(**arguments: Any) -> Auto:
    """All steps but the first and every fiftieth after it are Horovod's own."""
    return Auto(["dense"], **arguments)


@scenario("mpirun 2", long=LONG)
def replicas_are_equal_whatever_the_clocks_say() -> None:
    model, compression = network(), Auto(look_again=100)
    go_wild(compression, hvd.rank())
    train(model, optimizer(model, compression), steps=130)
    assert_replicas_equal(model)
    assert len(set(gather(str(compression.stats()["auto"])))) == 1
    assert compression.stats()["total"]["steps"] == 130


@scenario("mpirun 2", long=LONG)
def it_goes_back_to_uncompressed_with_an_empty_memory() -> None:
    model, compression = network(), Auto(["dense", "sidco"], look_again=100)
    clock = Clock(compression, hvd.rank(), {"Dense": 1.0, "SIDCo": 1.01})
    opt = optimizer(model, compression)
    ran = []

    def before_step(step: int) -> None:
        ran.append(clock.tick(step))
        if ran[-2:] == ["flush", "Dense"]:
            assert not any(array.any() for array in memory(compression).values())

    train(model, opt, steps=160, before_step=before_step)
    assert ran.count("SIDCo") > 10
    assert compression.choosing.trials.looks == 2
    assert ran.count("flush") > 2
    assert compression.stats()["auto"]["choice"] == "Dense()"
    assert_replicas_equal(model)


@scenario("mpirun 2", long=["gloo 2"])
def uncompressed_is_horovod_s_own_way() -> None:
    """With two ranks a sum has one rounding, so that the first step is the same, too; and all others are Horovod's."""
    for keywords in ({}, {"groups": 2}, {"op": hvd.Sum, "lr": 0.1}):
        plain, model, compression = network(), network(), dense_alone()
        train(plain, optimizer(plain, hvd.Compression.none, named_parameters="plain.", **keywords), steps=60)
        train(model, optimizer(model, compression, **keywords), steps=60)
        assert digest(plain) == digest(model)
        total = compression.stats()["total"]
        nbytes = 60 * sum(4 * p.numel() for p in model.parameters())
        assert (total["steps"], total["dense_bytes"]) == (60, nbytes)
        assert nbytes < total["sent_bytes"] < 1.01 * nbytes


@scenario("mpirun 2")
def compress_returns_what_it_was_given() -> None:
    model, compression = network(), dense_alone()
    opt = optimizer(model, compression)
    train(model, opt, steps=2)
    given: list[bool] = []
    compress = compression.compress

    def watched(tensor: torch.Tensor) -> Any:
        token, context = compress(tensor)
        given.append(token is tensor and context is AS_IT_WAS)
        return token, context

    object.__setattr__(compression, "compress", watched)
    train(model, opt, steps=3, first=2)
    object.__delattr__(compression, "compress")
    assert given == [True] * 3 * len(list(model.parameters()))


@scenario("mpirun 2", long=["gloo 2"])
def a_second_optimizer_is_refused_in_horovod_s_own_way() -> None:
    """With its first gradient, before anything of it is sent or counted; also where gradients are in groups."""
    for keywords in ({}, {"groups": 1}):
        model, other, compression = network(), network(), dense_alone()
        opt = optimizer(model, compression, named_parameters="model.", **keywords)
        second = optimizer(other, compression, named_parameters="other.", **keywords)
        train(model, opt, steps=3)
        expect(ValueError, "already serves another optimizer", run=lambda: train(other, second, steps=1))  # noqa: B023
        assert compression.state_dict()["step"] == 3
        train(model, opt, steps=2)
        assert compression.stats()["total"]["steps"] == 5
        assert_replicas_equal(model)


@scenario("mpirun 2", long=LONG)
def a_step_that_is_not_finite_is_none_in_horovod_s_own_way() -> None:
    makes = (
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.Adam(parameters, 0.01),
    )
    for make in makes:
        moves(dense_alone(), make, False, float("nan"))
    model, compression = network(), dense_alone(nonfinite="nan")
    opt = optimizer(model, compression)
    train(model, opt, steps=2)
    handle = model[0].bias.register_hook(lambda g: g * float("nan"))
    train(model, opt, steps=1, first=2)
    handle.remove()
    assert not all(parameter.isfinite().all() for parameter in model.parameters())
    assert compression.stats()["total"]["skipped_steps"] == 0


@scenario("mpirun 2")
def a_step_that_is_not_finite_may_be_given_up() -> None:
    """Its gradients are reduced and not applied: the next ones are looked at for themselves, here and in a flush."""
    model, compression = network(), Auto(["dense"], look_again=100)
    opt = optimizer(model, compression)
    train(model, opt, steps=2)
    for step in range(2, 60):
        opt.zero_grad()
        handle = model[0].bias.register_hook(lambda g: g * float("nan"))
        torch.nn.functional.cross_entropy(model(torch.ones(2, 64)), torch.tensor([0, 1])).backward()
        handle.remove()
        opt.synchronize()
        before = digest(model)
        train(model, opt, steps=1, first=step)
        assert digest(model) != before
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert_replicas_equal(model)


@scenario("mpirun 2")
def clipping_and_loss_scales_in_horovod_s_own_way() -> None:
    """The user synchronizes, looks at the gradients, and leaves a step out: on all ranks, as without compression."""
    digests = []
    for compression in (hvd.Compression.none, dense_alone()):
        model = network()
        opt = optimizer(model, compression, named_parameters="x." if compression is hvd.Compression.none else "y.")
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for t, (inputs, labels) in enumerate(batches(60)):
            opt.zero_grad()
            scaler.scale(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
            opt.synchronize()
            if t in (7, 51):  # on all ranks alike: the reduced gradient
                model[2].weight.grad[0, 0] = float("inf")
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with opt.skip_synchronize():
                scaler.step(opt)
            scaler.update()
        digests.append(digest(model))
    assert digests[0] == digests[1]
    assert compression.stats()["total"]["steps"] == 60


@scenario("mpirun 2", long=["mpirun 4"])
def saved_in_the_middle_of_horovod_s_own_steps() -> None:
    """Resumed, it is the same run: the first step goes through our own all-reduce, all others are Horovod's."""
    model, compression = network(), dense_alone()
    opt = optimizer(model, compression)
    train(model, opt, steps=20)
    state, weights = compression.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
    assert state["step"] == 20
    train(model, opt, steps=40, first=20)
    again, resumed = network(), dense_alone()
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, optimizer(again, resumed), steps=40, first=20)
    assert_replicas_equal(again)
    assert resumed.state_dict()["step"] == compression.state_dict()["step"] == 60
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@scenario("mpirun 2")
def sparse_gradients_are_never_left_to_be_counted() -> None:
    """Horovod gathers them past the compressor, so that the steps cannot be counted by gradients."""
    torch.manual_seed(0)
    embedding, compression = torch.nn.Embedding(50, 64, sparse=True), dense_alone()
    model = torch.nn.Sequential(embedding, torch.nn.Linear(64, 64))
    opt = optimizer(model, compression)
    for _ in range(5):
        opt.zero_grad()
        model(torch.arange(8) + hvd.rank()).square().mean().backward()
        opt.step()
    assert compression.stats()["total"]["steps"] == 5
    assert_replicas_equal(model)
