"""Scenarios: Horovod is shut down and initialized again, between two steps and in the middle of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import horovod.torch as hvd
import numpy as np
import pytest
import torch
from horovod.common.exceptions import HorovodInternalError

import hvd_compress
from hvd_compress.drivers.initialization import initialization
from hvd_compress.drivers.torch import driver, horovod_internals, transport
from hvd_compress.drivers.torch.elastic import CompressorStateHandler
from hvd_compress.drivers.torch.transport import HorovodTransport
from hvd_compress.exchange import AllGather
from tests.ranks.checks import expect, memory, same
from tests.ranks.restarting import restart, shut_down
from tests.ranks.scenario import scenario
from tests.ranks.torch.oracle import backward
from tests.ranks.torch.training import assert_replicas_equal, digest, network, optimizer, scaled_step, train


def beside_one_that_goes_on(change: Callable[[torch.nn.Module, Any, Any], Any], **configuration: Any) -> None:
    """Train without ``change`` and with it in the middle; it returns the optimizer to go on with. Bits are alike."""
    digests = []
    for change_of_this in (lambda model, opt, compression: opt, change):
        model = network()
        compression = hvd_compress.from_config({"bucket_mb": 0.05, **configuration})
        opt = optimizer(model, compression)
        train(model, opt, steps=3)
        opt = change_of_this(model, opt, compression)
        train(model, opt, steps=3, first=3)
        assert_replicas_equal(model)
        digests.append((digest(model), {name: array.tobytes() for name, array in memory(compression).items()}))
        assert compression.state_dict()["step"] == 6
    assert digests[0] == digests[1]


@scenario("gloo 2")
def initialized_again() -> None:
    for name in ("sidco", "dense", "randk-maxnorm", "fft"):
        beside_one_that_goes_on(lambda _model, opt, _compression: restart(hvd) or opt, name=name)
    assert {key[0] for key in driver._agreements} == {initialization()}, "what was agreed before is kept"


@scenario("gloo 2")
def initialized_again_in_a_step() -> None:
    def change(model: torch.nn.Module, opt: Any, compression: Any) -> Any:
        before, good = memory(compression), opt.state_dict()
        backward(model, 77)
        restart(hvd)
        opt.load_state_dict(good)  # Horovod forgets what was under way
        backward(model, 3)
        opt.load_state_dict(good)
        restart(hvd)
        assert same(memory(compression), before)
        return opt

    beside_one_that_goes_on(change, name="sidco")
    beside_one_that_goes_on(change, name="qsgd-maxnorm")


@scenario("gloo 2")
def initialized_again_with_a_new_optimizer() -> None:
    def change(model: torch.nn.Module, opt: Any, _compression: Any) -> Any:
        backward(model, 77)
        restart(hvd)
        opt.load_state_dict(opt.state_dict())
        opt.__dict__.clear()
        return optimizer(model, _compression)

    beside_one_that_goes_on(change, name="topk")


@scenario("mpirun 2", long=["gloo 2"])
def a_loss_scale_that_changes_after_a_commit() -> None:
    """What is restored is in the unit of the scale of now, also of a scaler that the compressor was not told of."""
    model, compression = network(), hvd_compress.TopK(0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = optimizer(model, compression)
    for t in range(2):
        scaled_step(model, opt, scaler, t)
    committed = CompressorStateHandler(compression)
    scaler.update(new_scale=2048.0)
    expected = memory(compression)
    committed.restore()
    assert same(memory(compression), expected)


@scenario("mpirun 2")
def a_scaler_that_is_replaced_after_a_commit() -> None:
    """What is restored comes from the unit of the scaler that was noticed before the commit to that of the other one,
    whose scale is four times as large."""
    model, compression = network(), hvd_compress.TopK(0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = optimizer(model, compression)
    for t in range(2):
        scaled_step(model, opt, scaler, t)
    committed, before = CompressorStateHandler(compression), memory(compression)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    for t in range(2, 4):
        scaled_step(model, opt, scaler, t)
    committed.restore()
    assert any(array.any() for array in before.values())
    assert same(memory(compression), {name: 4 * array for name, array in before.items()})


@scenario("gloo 2")
def a_step_that_failed_is_forgotten() -> None:
    """What ended one step with an error is the next one's cause of an error, until Horovod is initialized again."""

    def change(model: torch.nn.Module, opt: Any, compression: Any) -> Any:
        before, good = memory(compression), opt.state_dict()
        backward(model, 77)
        shut_down(hvd)
        try:
            opt.step()
        except (HorovodInternalError, RuntimeError, ValueError):
            pass
        else:
            raise AssertionError("a step without Horovod came to its end")
        opt.load_state_dict(good)
        hvd.init()
        backward(model, 77)
        opt.load_state_dict(good)
        restart(hvd)
        assert same(memory(compression), before)
        return opt

    beside_one_that_goes_on(change, name="sidco")


@scenario("mpirun 2")
def a_collective_that_is_left_over() -> None:
    """Under a name that Horovod has from before the workers changed: elastic jobs begin anew, as after any loss."""
    payload = np.zeros(16, np.uint8)
    for elastic, error in (("0", ValueError), ("1", HorovodInternalError)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOROVOD_ELASTIC", elastic)
            mine = HorovodTransport(hvd.global_process_set)
        if hvd.rank() == 0:
            left_over = hvd.allgather_async(torch.from_numpy(payload), name="left over")
            expect(error, "", run=partial(mine.start, AllGather(payload), "left over"))
        hvd.allreduce(torch.ones(1), name="rank 0 has looked")
        if hvd.rank():
            left_over = hvd.allgather_async(torch.from_numpy(payload), name="left over")
        hvd.synchronize(left_over)
    if hvd.rank() == 0:
        started = mine.start(AllGather(payload), "left over")
        expect(ValueError, "same name", run=lambda: mine.start(AllGather(payload), "left over"))  # its own fault
    hvd.allreduce(torch.ones(1), name="rank 0 has looked")
    if hvd.rank():
        started = mine.start(AllGather(payload), "left over")
    mine.wait(started)


@scenario("mpirun 2", first=True)
def collectives_of_elastic_jobs_let_horovod_end_first() -> None:
    """Before every exchange's, and Horovod's own of every gradient, it is given the time to end."""
    for elastic, expected in (("1", 8 + 1), ("0", 0)):
        asked: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOROVOD_ELASTIC", elastic)
            model = network()
            opt = optimizer(model, hvd_compress.TopK(0.05))
            train(model, opt, steps=2)
            for module in (horovod_internals, transport):
                patch.setattr(module, "await_end", lambda: asked.append(1))  # noqa: B023
            train(model, opt, steps=1, first=2)
        assert len(asked) == expected, (elastic, asked)


@scenario("mpirun 2")
def it_is_looked_again_where_another_thread_was_in_the_way() -> None:
    """What was seen before this thread had Python's lock back may no longer be so."""

    class Slow:
        looks = 0

        def horovod_number_of_process_sets(self) -> None:
            self.looks += 1
            if self.looks < 3:
                time.sleep(10 * horovod_internals.AT_ONCE)

    slow = Slow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(horovod_internals.mpi_ops._basics, "MPI_LIB_CTYPES", slow)
        horovod_internals.await_end()
    assert 3 <= slow.looks <= horovod_internals.LOOKS
