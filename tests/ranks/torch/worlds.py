"""Scenarios: Horovod is shut down and initialized again, between two steps and in the middle of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import numpy as np
import pytest
import torch
from horovod.common.exceptions import HorovodInternalError

import hvd_compress
from hvd_compress.drivers.torch.transport import HorovodTransport
from hvd_compress.exchange import AllGather
from tests.ranks.checks import expect, memory, same
from tests.ranks.scenario import scenario
from tests.ranks.torch.oracle import backward
from tests.ranks.torch.training import assert_replicas_equal, digest, network, optimizer, train


def shut_down() -> None:
    hvd.allreduce(torch.ones(1), name="all are here")  # nobody goes while another still hands gradients over
    hvd.shutdown()


def restart() -> None:
    shut_down()
    hvd.init()


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
        beside_one_that_goes_on(lambda _model, opt, _compression: restart() or opt, name=name)


@scenario("gloo 2")
def initialized_again_in_a_step() -> None:
    def change(model: torch.nn.Module, opt: Any, compression: Any) -> Any:
        before, good = memory(compression), opt.state_dict()
        backward(model, 77)
        restart()
        opt.load_state_dict(good)  # Horovod forgets what was under way
        backward(model, 3)
        opt.load_state_dict(good)
        restart()
        assert same(memory(compression), before)
        return opt

    beside_one_that_goes_on(change, name="sidco")
    beside_one_that_goes_on(change, name="qsgd-maxnorm")


@scenario("gloo 2")
def initialized_again_with_a_new_optimizer() -> None:
    def change(model: torch.nn.Module, opt: Any, _compression: Any) -> Any:
        backward(model, 77)
        restart()
        opt.load_state_dict(opt.state_dict())
        opt.__dict__.clear()
        return optimizer(model, _compression)

    beside_one_that_goes_on(change, name="topk")


@scenario("gloo 2")
def a_step_that_failed_is_forgotten() -> None:
    """What ended one step with an error is the next one's cause of an error, until Horovod is initialized again."""

    def change(model: torch.nn.Module, opt: Any, compression: Any) -> Any:
        before, good = memory(compression), opt.state_dict()
        backward(model, 77)
        shut_down()
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
        restart()
        assert same(memory(compression), before)
        return opt

    beside_one_that_goes_on(change, name="sidco")


@scenario("mpirun 2")
def a_collective_that_is_left_over() -> None:
    """Under a name that Horovod has from before the workers changed: elastic jobs begin anew, as after any loss."""
    transport = HorovodTransport(hvd.global_process_set)
    payload = np.zeros(16, np.uint8)
    for elastic, error in (("1", HorovodInternalError), ("0", ValueError)):
        if hvd.rank() == 0:
            left_over = hvd.allgather_async(torch.from_numpy(payload), name="left over")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HOROVOD_ELASTIC", elastic)
                expect(error, "", run=lambda: transport.start(AllGather(payload), "left over"))
        hvd.allreduce(torch.ones(1), name="rank 0 has looked")
        if hvd.rank():
            left_over = hvd.allgather_async(torch.from_numpy(payload), name="left over")
        hvd.synchronize(left_over)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOROVOD_ELASTIC", "1")
        if hvd.rank() == 0:
            mine = transport.start(AllGather(payload), "left over")
            expect(ValueError, "same name", run=lambda: transport.start(AllGather(payload), "left over"))  # its fault
        hvd.allreduce(torch.ones(1), name="rank 0 has looked")
        if hvd.rank():
            mine = transport.start(AllGather(payload), "left over")
        transport.wait(mine)
