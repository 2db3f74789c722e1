"""Scenarios: steps that begin and do not end, or are synchronized and not applied."""

from __future__ import annotations

import copy
import time
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.checks import expect, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.optimizers import sidco
from tests.ranks.torch.oracle import Ledger, backward, beside_horovod, logged, loss_of
from tests.ranks.torch.training import network, optimizer, train


def await_partners(optimizer: Any) -> None:
    """Return when the others have handed over what this rank has: plain Horovod raises if a name is handed over again
    before that."""
    under_way = [handle for handle, _ in optimizer._handles.values() if handle is not None]
    for _ in range(3000):
        if all(map(hvd.poll, under_way)):
            return
        time.sleep(0.01)
    raise AssertionError("the other ranks have not come")


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def abandoned_steps() -> None:
    """A loss turns out bad after its backward pass: back to the last good state."""

    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression)
        for at in (0, 3):
            train(model, opt, steps=at)
            good = copy.deepcopy((model.state_dict(), opt.state_dict()))
            backward(model, 7, 1e3)
            await_partners(opt)
            model.load_state_dict(good[0])
            opt.load_state_dict(good[1])
            opt.zero_grad()
            train(model, opt, steps=1, first=at)
        train(model, opt, steps=3, first=4)

    beside_horovod(run)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def an_abandoned_step_leaves_no_trace() -> None:
    model, compression = network(), hvd_compress.TopK(0.05, bucket_mb=0.05)
    opt, ledger = optimizer(model, compression, lr=0.1), Ledger(model, 0.1)
    for t in range(6):
        opt.zero_grad()
        if t in (0, 3):
            backward(model, 7, 1e3)
            await_partners(opt)
            opt.load_state_dict(opt.state_dict())
            opt.zero_grad()
        if t == 5:
            compression.flush()
        ledger.backward(loss_of(model, t))
        opt.step()
    assert compression.stats()["total"]["skipped_steps"] == 2
    ledger.check()


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def two_backward_passes() -> None:
    """Without ``backward_passes_per_step`` Horovod raises; afterwards one can go on from a good state."""

    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        good = opt.state_dict()
        backward(model, 2)
        expect(AssertionError, "backward_passes_per_step", run=lambda: backward(model, 3))
        await_partners(opt)
        opt.load_state_dict(good)
        opt.zero_grad()
        train(model, opt, steps=3, first=2)

    beside_horovod(run)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
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
        await_partners(opt)
        opt.load_state_dict(good)
        opt.zero_grad()
        train(model, opt, steps=3, first=2)

    beside_horovod(run)


@scenario("mpirun 2", long=["gloo 2"], last=True)
def an_exception_in_backward_on_one_rank() -> None:
    """The others' step comes to its end, and that rank goes on with its next. What it did not hand over of Horovod's
    own it does then, so that these reductions stay one step apart: as in plain Horovod, all go on but for the last."""

    class Failure(ArithmeticError):
        pass

    def explode(gradient: torch.Tensor) -> None:
        raise Failure

    steps = 4
    makes = (lambda: hvd.Compression.none, lambda: hvd_compress.TopK(0.05), hvd_compress.QSGDMaxNorm)
    for number, (make, at, by_hand) in enumerate(
        (make, at, by_hand) for make in makes for at in (0, 2) for by_hand in (False, True)
    ):
        model, compression = network(), make()
        opt = optimizer(model, compression, named_parameters=f"failing.{number}.")
        for t in range(steps):
            fails = t == at and hvd.rank() == hvd.size() - 1
            good = opt.state_dict()
            handle = model[0].weight.register_hook(explode) if fails else None  # the others are handed over by then
            try:
                backward(model, t)
            except Failure:
                assert handle is not None
                handle.remove()
                await_partners(opt)
                opt.load_state_dict(good)
                model.zero_grad()
                continue
            assert not fails
            if t == steps - 1:
                break  # the ranks' last reductions have no partners
            if by_hand:
                opt.synchronize()
                with opt.skip_synchronize():
                    opt.step()
            else:
                opt.step()
            opt.zero_grad()
        assert all(p.isfinite().all() for p in model.parameters())
        if compression is not hvd.Compression.none:
            # the step is skipped by all, as far as they have not been told too late
            assert compression.stats()["total"]["skipped_steps"] == 1


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def groups_and_abandoned_steps() -> None:
    def run(model: torch.nn.Module, compression: Any) -> None:
        opt = optimizer(model, compression, groups=2)
        train(model, opt, steps=2)
        good = opt.state_dict()
        backward(model, 2, 1e3)
        await_partners(opt)
        opt.load_state_dict(good)
        opt.zero_grad()
        train(model, opt, steps=3, first=2)

    beside_horovod(run)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def synchronized_and_discarded() -> None:
    states = []
    for probe in (False, True):
        model, compression = network(), sidco()
        opt = optimizer(model, compression)
        train(model, opt, steps=2)
        held = memory(compression)
        if probe:
            if hvd.rank() == hvd.size() - 1:  # any one may ask, and all know
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


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"], last=True)
def a_step_after_one_that_failed_says_why_not() -> None:
    """And not that Horovod has something under way: its own part of the step that failed is over."""
    for keywords in ({}, {"groups": 2}):
        model, compression = network(), hvd_compress.TopK(0.1 if hvd.rank() else 0.2)
        opt = optimizer(model, compression, **keywords)
        expect(ValueError, "ranks disagree on the compressor", run=lambda: train(model, opt, steps=1))  # noqa: B023
        for _ in range(2):
            words = ("an earlier step of", "ranks disagree on the compressor", "It left no trace")
            expect(RuntimeError, *words, run=lambda: train(model, opt, steps=1))  # noqa: B023
