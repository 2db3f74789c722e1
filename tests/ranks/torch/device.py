"""Scenarios: gradients on a device. The CPU is one here, by Triton's interpreter, through the whole driver."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import pytest
import torch

import hvd_compress
from hvd_compress.drivers.torch import devices, tensors
from hvd_compress.drivers.torch.streams import DeviceStream
from hvd_compress.drivers.torch.transport import HorovodTransport
from tests.ranks.checks import memory, same
from tests.ranks.recording import recorded
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, optimizer


@contextmanager
def on_device(active: bool = True) -> Iterator[None]:
    """Optimizers that are served first in here have their gradients on a device."""
    if active:
        os.environ["HVD_COMPRESS_KERNELS"] = "device"
    try:
        yield
    finally:
        os.environ.pop("HVD_COMPRESS_KERNELS", None)


def small_network(weights: dict[str, torch.Tensor] | None = None) -> torch.nn.Sequential:
    """Two matrices that are compressed, and what is not: the interpreter is slow."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(36, 30), torch.nn.ReLU(), torch.nn.Linear(30, 40))
    if weights is not None:
        model.load_state_dict(weights)
    return model


def steps(model: Any, opt: Any, count: int, first: int = 0) -> None:
    for t in range(first, first + count):
        opt.zero_grad()
        inputs = torch.randn(8, 36, generator=torch.Generator().manual_seed(100 * t + hvd.rank()))
        (model(inputs) ** 2).mean().backward()
        opt.step()


def trained(compression: Any, *, device: bool, count: int = 2) -> tuple[list[Any], list[torch.Tensor], dict[str, Any]]:
    """What a rank sends in a few steps, and the weights and the memory after them."""
    model = small_network()
    opt = optimizer(model, compression, lr=0.5)
    with on_device(device), recorded(HorovodTransport) as sent:
        steps(model, opt, count)
        held = memory(compression)
    assert_replicas_equal(model)
    assert compression.stats().get("transport") == ("host" if device else None)
    rounds = sorted((name, what) for _, name, what in sent if "round" in name)
    assert len(rounds) > count
    return rounds, [p.detach().clone() for p in model.parameters()], held


def assert_as_on_the_host(compressors: Sequence[Any], count: int = 2) -> None:
    """The same payloads, weights and memories, to the last bit."""
    for compression in compressors:
        config = compression.to_config()
        sent, weights, held = trained(compression, device=True, count=count)
        expected = trained(hvd_compress.from_config(config), device=False, count=count)
        assert sent == expected[0], compression
        assert all(torch.equal(x, y) for x, y in zip(weights, expected[1], strict=True)), compression
        assert same(held, expected[2]), compression


@scenario("mpirun 2", long=["gloo 2", "mpirun 3"])
def as_on_the_host() -> None:
    assert_as_on_the_host([hvd_compress.SIDCo(0.05, bucket_mb=0.006)])


@scenario(long=["mpirun 2"])
def every_compressor_as_on_the_host() -> None:
    assert_as_on_the_host(
        [
            hvd_compress.TopK(0.05, wire="bfloat16"),
            hvd_compress.TopK(0.05, aggregate="reduce-scatter", wire="range8"),
            hvd_compress.DGC(0.05, clip=0.1, weight_decay=0.01),
            hvd_compress.SIDCo(0.05, fit="gamma-pareto", stages="adaptive"),
            hvd_compress.SharedTopK(0.05, low_pass=0.5),
            hvd_compress.QSGDMaxNorm(4),
            hvd_compress.QSGDMaxNormMultiScale((3, 6, 9), norm="l2"),
            hvd_compress.RandKMaxNorm(0.3, 4),
            hvd_compress.RandKMaxNormMultiScale(0.3, error_feedback=False),
            hvd_compress.TernGrad(chunk="layer", shared=True),
            hvd_compress.Dense(),
            hvd_compress.Half(),
            hvd_compress.Half(dtype="float16", aggregate="all-reduce"),
            hvd_compress.Half(aggregate="reduce-scatter"),
            hvd_compress.TwoLevel(hvd_compress.SIDCo(0.05), ranks_per_node=1),
        ]
    )
    small = {"encoder": (8, 8, 4), "decoder": (8, 8), "dense_steps": 2, "train_steps": 2, "trainer": "inline"}
    assert_as_on_the_host([hvd_compress.LGC(0.05, floor=False, **small)], count=6)
    shares = hvd_compress.TwoLevel(hvd_compress.TopK(0.1), ranks_per_node=2)
    trained(shares, device=True)


@scenario(long=["mpirun 2"])
def auto_tries_its_candidates() -> None:
    """Replicas are equal all along, whatever it chooses."""
    compression = hvd_compress.Auto()
    model = small_network()
    opt = optimizer(model, compression, lr=0.05)
    with on_device():
        for t in range(60):
            steps(model, opt, 1, first=t)
    assert_replicas_equal(model)
    assert compression.stats()["total"]["sent_bytes"] > 0


class DeviceScaler:
    """A ``GradScaler`` in what matters: to ask for its scale is to wait for the device."""

    def __init__(self) -> None:
        self.scale = torch.tensor(1024.0)

    def get_scale(self) -> float:
        return float(self.scale.item())


@contextmanager
def waits_counted() -> Iterator[list[str]]:
    """Names of all that waits for a device and was called on this thread."""
    called: list[str] = []
    thread = threading.get_ident()
    from hvd_compress.kernels.device import launch  # needs Triton

    waiting = [(torch.Tensor, name) for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__")]
    waiting += [(torch.Tensor, "__int__"), (torch.Tensor, "__array__"), (launch.Launcher, "copy_to_host")]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in waiting:
            patch.setattr(owner, name, _counted(getattr(owner, name), name, thread, called))
        yield called


def _counted(original: Any, name: str, thread: int, called: list[str]) -> Any:
    def counted(*arguments: Any, **named: Any) -> Any:
        if threading.get_ident() == thread:
            called.append(name)
        return original(*arguments, **named)

    return counted


@scenario("mpirun 2")
def the_backward_pass_waits_for_nothing() -> None:
    """Not for a gradient, nor for the loss scale, nor whether what is left to Horovod is finite: from the second step
    on, for the first makes the buckets."""
    model, compression, scaler = small_network(), hvd_compress.QSGDMaxNorm(8), DeviceScaler()
    compression.use_grad_scaler(scaler)
    opt = optimizer(model, compression)
    with on_device():
        steps(model, opt, 1)
        for t in range(1, 3):
            scaler.scale *= 0.5
            opt.zero_grad()
            loss = (model(torch.ones(8, 36) * (hvd.rank() + t)) ** 2).mean()
            with waits_counted() as called:
                loss.backward()
            assert called == []
            opt.step()
        with waits_counted() as called:
            loss.item()
        assert called == ["item"]
    assert_replicas_equal(model)


@scenario("mpirun 2")
def whether_a_step_is_finite_is_asked_once() -> None:
    """However many gradients are looked at when it is over; and one that is not finite is zeros where that is asked
    for, or is withheld with all others."""
    for make in (lambda: hvd_compress.TopK(0.1), lambda: hvd_compress.Dense(nonfinite="zero")):
        waits = []
        for number in (1, 4):
            torch.manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(36, 30))
            halves = [torch.nn.Parameter(torch.zeros(8, dtype=torch.float16)) for _ in range(number)]
            named = [(f"{number}.{n}", p) for n, p in enumerate([weight, *halves])]
            compression = make()
            opt = hvd.DistributedOptimizer(
                torch.optim.SGD([p for _, p in named], lr=0.5), named_parameters=named, compression=compression
            )
            with on_device():
                for factor in (1.0, torch.nan, 1.0):
                    opt.zero_grad()
                    loss = (weight * (hvd.rank() + 1)).sum() + sum(half.sum().float() for half in halves[:-1])
                    (loss + (halves[-1] * factor).sum().float()).backward()
                    with waits_counted() as called:
                        opt.step()
                assert weight.isfinite().all()
                steps_of_last = 2
                steps_of_others = 2 if compression.nonfinite == "skip" else 3
                assert torch.equal(halves[-1], torch.full_like(halves[-1], -0.5 * steps_of_last))
                assert all(torch.equal(half, torch.full_like(half, -0.5 * steps_of_others)) for half in halves[:-1])
            waits.append(len(called))
        assert waits[0] == waits[1], (make().name, waits)


class Several(torch.nn.Module):
    """Parameters of every type and layout; the gradient of each is what ``given`` has for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.single = torch.nn.Parameter(torch.randn(36, 30))
        self.sixteen = torch.nn.Parameter(torch.randn(32, 33).to(torch.float16))
        self.brain = torch.nn.Parameter(torch.randn(40, 31).to(torch.bfloat16))
        self.wide = torch.nn.Parameter(torch.randn(35, 30).to(torch.float64))
        self.image = torch.nn.Parameter(torch.randn(12, 10, 3, 3).to(memory_format=torch.channels_last))
        self.transposed = torch.nn.Parameter(torch.randn(40, 32).t())
        self.bias = torch.nn.Parameter(torch.zeros(30))
        self.brain_bias = torch.nn.Parameter(torch.zeros(31, dtype=torch.bfloat16))

    def step(self, opt: Any, t: int, bad: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(100 * t + hvd.rank())
        loss = torch.zeros(())
        for p in self.parameters():
            given = torch.randn(p.shape, generator=generator).to(p.dtype)
            loss = loss + (p * given).sum().float()
        (loss + bad * self.bias[3] * (hvd.rank() == 0)).backward()
        if t == 0:
            assert self.image.grad is not None
            assert not self.image.grad.is_contiguous()
        opt.step()
        self.zero_grad(set_to_none=t % 2 == 0)  # means are also accumulated in


@contextmanager
def pieces_checked() -> Iterator[None]:
    """A gradient that has to be copied is copied on the stream that it is complete on, not on the library's."""
    allocating, piece, inside = DeviceStream.allocating, tensors.piece, threading.local()

    @contextmanager
    def noted(self: DeviceStream) -> Iterator[None]:
        inside.active = True
        try:
            with allocating(self):
                yield
        finally:
            inside.active = False

    def checked(tensor: torch.Tensor) -> Any:
        assert not getattr(inside, "active", False)
        return piece(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceStream, "allocating", noted)
        patch.setattr(tensors, "piece", checked)
        yield


@scenario(long=["mpirun 2"])
def all_kinds_of_gradients() -> None:
    """Types and layouts; sums instead of means; some parameters on the host; a step that is not finite. Weights are
    those of a run on the host, to the last bit."""
    for keywords, on_host in (
        ({}, ()),
        ({"op": hvd.Sum}, (36 * 30, 12 * 10 * 9)),
        ({"groups": 2}, ()),
    ):
        weights = []
        for device in (True, False):
            model, compression = Several(), hvd_compress.TopK(0.1, bucket_mb=0.001)  # a bucket for each
            opt = optimizer(model, compression, lr=0.01, **keywords)
            with on_device(device), pieces_checked(), pytest.MonkeyPatch.context() as patch:
                if device and on_host:
                    place = devices.place
                    patch.setattr(devices, "place", lambda x, p=place, h=on_host: "" if x.numel() in h else p(x))
                for t in range(5):
                    model.step(opt, t, bad=torch.inf if t == 2 else 0.0)
            assert compression.stats()["total"]["skipped_steps"] == 1
            assert_replicas_equal(model)
            weights.append([p.detach().clone() for p in model.parameters()])
        assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True)), keywords


@scenario(long=["mpirun 2"])
def buckets_have_parameters_of_one_place() -> None:
    model, compression = Several(), hvd_compress.SIDCo(0.1)
    opt = optimizer(model, compression, lr=0.01)
    with on_device(), pytest.MonkeyPatch.context() as patch:
        place = devices.place
        patch.setattr(devices, "place", lambda x: "" if x.numel() in (36 * 30, 12 * 10 * 9) else place(x))
        for t in range(3):
            model.step(opt, t)
        assert sorted(map(len, compression.state_dict()["layout"])) == [2, 4]
    assert_replicas_equal(model)


@scenario(long=["mpirun 2"])
def reductions_outside_an_optimizer() -> None:
    """``hvd.allreduce`` and its like, and what flows back."""
    for compression in (hvd_compress.TopK(0.1), hvd_compress.QSGDMaxNormMultiScale((4, 8)), hvd_compress.Dense()):
        results = []
        for device in (True, False):
            x = torch.randn(2, 1200, generator=torch.Generator().manual_seed(hvd.rank())).requires_grad_()
            with on_device(device):
                mean = hvd.allreduce(x, name="x", compression=compression, op=hvd.Sum, prescale_factor=0.5)
                several = hvd.grouped_allreduce([x * 2, x[:1, :5], x], name="xs", compression=compression)
                (mean.sum() + several[0].sum()).backward()
            results.append([mean, *several, x.grad])
        # the library draws other random numbers in every call
        for left, right in zip(*results, strict=True):
            assert left.shape == right.shape
            if "qsgd" not in compression.name:
                assert torch.equal(left, right), compression


@scenario(long=["mpirun 2"])
def a_run_moves_to_the_host_and_back() -> None:
    """With its memory: the weights are those of a run that stayed."""

    def run(places: Sequence[bool]) -> list[torch.Tensor]:
        model, state = small_network(), None
        for number, device in enumerate(places):
            model = small_network(model.state_dict())  # an optimizer leaves hooks behind
            compression = hvd_compress.DGC(0.05, bucket_mb=0.003)
            if state is not None:
                compression.load_state_dict(state)
            opt = optimizer(model, compression, lr=0.5)
            with on_device(device):
                steps(model, opt, 2, first=2 * number)
                state = compression.state_dict()
            assert all(array.device.type == "cpu" for held in state["memory"].values() for array in held.values())
        assert_replicas_equal(model)
        return [p.detach() for p in model.parameters()]

    stayed = run([False, False, False])
    for places in ([True, False, True], [False, True, True]):
        assert all(torch.equal(x, y) for x, y in zip(run(places), stayed, strict=True)), places


@scenario(long=["mpirun 2"])
def no_memory_on_the_device() -> None:
    """The bucket is named, and nothing of the step counts."""
    model, compression = small_network(), hvd_compress.TopK(0.1)
    opt = optimizer(model, compression)
    with on_device():
        steps(model, opt, 2)
        before = memory(compression)
        with pytest.MonkeyPatch.context() as patch:

            def fail(*arguments: Any) -> None:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB")

            patch.setattr("hvd_compress.kernels.device.selection.select", fail)
            with pytest.raises(MemoryError, match=r"the bucket 'bucket\d' of 2,280 elements.*7\.00 GiB.*bucket_mb"):
                steps(model, opt, 1)
        state = compression.state_dict()
        assert same(memory(compression), before)
        again = hvd_compress.TopK(0.1)
        again.load_state_dict(state)
        model = small_network(model.state_dict())
        opt = optimizer(model, again)
        steps(model, opt, 1)
    assert_replicas_equal(model)


@scenario(long=["mpirun 2"])
def ranks_on_different_devices() -> None:
    """They send the same bytes, and train together; but transforms differ in their last bits."""
    model = small_network()
    with on_device(hvd.rank() == 0):
        steps(model, optimizer(model, hvd_compress.SIDCo(0.1, bucket_mb=0.006)), 3)
        assert_replicas_equal(model)
        model = small_network()
        fft = optimizer(model, hvd_compress.FFT(0.1))
        with pytest.raises(ValueError, match=r"ranks disagree on the compressor.*on the CPU"):
            steps(model, fft, 1)
    with on_device():
        model = small_network()
        steps(model, optimizer(model, hvd_compress.FFT(0.1)), 3)
        assert_replicas_equal(model)
