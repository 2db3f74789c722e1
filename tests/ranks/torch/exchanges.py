"""Scenarios: what goes over the network, and when."""

from __future__ import annotations

import dataclasses
import random
import time

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress.drivers import simulation
from hvd_compress.drivers.torch.transport import HorovodTransport
from tests.ranks.checks import memory
from tests.ranks.recording import recorded
from tests.ranks.rounds import LeaderFirst, TwoRounds
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, batches, gather, network, optimizer, train


def compressors() -> list[hvd_compress.Compressor]:
    return [
        hvd_compress.SIDCo(0.05, bucket_mb=0.05, fit="gamma-pareto"),
        hvd_compress.SIDCo(0.02, bucket_mb=0.05, wire="bfloat16", seed=3),
        hvd_compress.TopK(0.05, bucket_mb=0.05, wire="float16"),
        hvd_compress.DGC(0.05, bucket_mb=0.05),
        hvd_compress.Half(bucket_mb=0.05),
        hvd_compress.TopK(0.05, bucket_mb=0.05, wire="range8"),
        hvd_compress.FFT(0.1, bucket_mb=0.05),
        hvd_compress.FFT(0.05, bucket_mb=0.05, block=None, bits=6, rounding="stochastic", error_feedback=False),
        hvd_compress.QSGDMaxNorm(4, bucket_mb=0.05),
        hvd_compress.QSGDMaxNormMultiScale((3, 6, 9), bucket_mb=0.05, norm="l2", seed=2),
        hvd_compress.RandKMaxNorm(0.1, 4, bucket_mb=0.05),
        hvd_compress.RandKMaxNormMultiScale(0.3, bucket_mb=0.05, error_feedback=False),
        hvd_compress.SIDCo(0.05, bucket_mb=0.05, aggregate="reduce-scatter", wire="range8"),
    ]


@scenario("mpirun 2", long=["mpirun 3", "gloo 2"])
def simulation_sends_the_same_bytes() -> None:
    """The gradients of real training, replayed in the simulation: every payload of every rank, byte for byte."""
    for compression in compressors():
        model = network()
        weights = [p for p in model.parameters() if p.dim() > 1 and p.numel() >= 1024]
        names = [name for name, p in model.named_parameters() if p.dim() > 1 and p.numel() >= 1024]
        opt = optimizer(model, compression, lr=0.05)
        gradients = []
        with recorded(HorovodTransport) as sent:
            for inputs, labels in batches(10):
                opt.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), labels).backward()
                # as they arrived: the last layer's first
                gradients.append([p.grad.numpy().copy() for p in reversed(weights)])
                opt.step()
        everyone = gather((gradients, sent))
        replica = hvd_compress.Simulation(dataclasses.replace(compression), workers=hvd.size())
        with recorded(simulation.SimulatedTransport) as simulated:
            for t in range(10):
                replica.step(
                    {
                        name: [everyone[rank][0][t][i] for rank in range(hvd.size())]
                        for i, name in enumerate(reversed(names))
                    }
                )
        for rank in range(hvd.size()):
            # sorted by name, for when a later round starts is a matter of timing
            real = sorted((name, h) for _, name, h in everyone[rank][1] if "round" in name)
            assert len(real) > 10
            replayed = sorted((name, h) for r, name, h in simulated if r == rank and "round" in name)
            assert [h for _, h in real] == [h for _, h in replayed], f"rank {rank} of {compression!r}"


@scenario("mpirun 2", long=["gloo 2", "mpirun 3"])
def several_rounds() -> None:
    for compression in (TwoRounds(bucket_mb=0.05), LeaderFirst(bucket_mb=0.05)):
        model = network()
        losses = train(model, optimizer(model, compression))
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 3", "gloo 2"])
def flush_without_a_payload() -> None:
    """The quantizers' first all-reduce carries the request."""
    model = network()
    compression = hvd_compress.RandKMaxNorm(0.2, 4, bucket_mb=0.05)
    opt = optimizer(model, compression, lr=0.05)
    train(model, opt, steps=4)
    assert any(array.any() for array in memory(compression).values())
    if hvd.rank() == hvd.size() - 1:
        compression.flush()
    train(model, opt, steps=1, first=4)
    assert not any(array.any() for array in memory(compression).values())
    train(model, opt, steps=1, first=5)
    assert any(array.any() for array in memory(compression).values())
    assert_replicas_equal(model)


@scenario(long=["mpirun 2", "mpirun 3", "gloo 2"])
def quantizers_learn() -> None:
    for compression in (
        hvd_compress.QSGDMaxNorm(4, bucket_mb=0.05),
        hvd_compress.QSGDMaxNormMultiScale(bucket_mb=0.05),
        hvd_compress.RandKMaxNorm(0.2, bucket_mb=0.05),
    ):
        model = network()
        losses = train(model, optimizer(model, compression, lr=0.1), steps=100)
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
        assert_replicas_equal(model)


@scenario("mpirun 2", long=["mpirun 3", "gloo 2"])
def ranks_that_are_late_at_random() -> None:
    """50 steps; gradients arrive at different times on different ranks, as do the ranks themselves."""
    chance = random.Random(hvd.rank())
    for compression in (hvd_compress.SIDCo(0.05, bucket_mb=0.03), hvd_compress.QSGDMaxNormMultiScale(bucket_mb=0.03)):
        model = network()
        for layer in model:
            layer.register_full_backward_hook(lambda *_: time.sleep(chance.choice([0, 0, 0, 0, 0.002])))
        train(model, optimizer(model, compression), steps=50)
        assert_replicas_equal(model)


class Parallel(torch.nn.Module):
    """Branches whose order of execution, and so of gradients, differs from rank to rank and from step to step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = torch.nn.ModuleList(torch.nn.Linear(64, 32) for _ in range(6))
        self.chance = random.Random(hvd.rank())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = list(self.branches)
        self.chance.shuffle(order)
        return torch.stack([branch(x) for branch in order]).sum(0)


@scenario("mpirun 2", long=["mpirun 3", "gloo 2"])
def gradients_in_different_orders() -> None:
    model = Parallel()
    compression = hvd_compress.SIDCo(0.05, bucket_mb=0.03)
    train(model, optimizer(model, compression), steps=100)
    assert_replicas_equal(model)
    layouts = gather(compression.state_dict()["layout"])
    assert all(layout == layouts[0] for layout in layouts)
    assert 1 < len(layouts[0]) < 6


@scenario("mpirun 2", long=["mpirun 3", "gloo 2"])
def buckets_after_the_first_step() -> None:
    model = network()
    compression = hvd_compress.TopK(0.05, bucket_mb=0.08)
    opt = optimizer(model, compression)
    with recorded(HorovodTransport) as sent:
        train(model, opt, steps=3)
    names = [name for _, name, _ in sent]
    weights = ["4.weight", "2.weight", "0.weight"]
    first = ["agreement", *(f"{name}.round0" for name in weights)]
    assert names[:4] == first, names
    assert names[4] == "order"
    assert names[5:] == 2 * names[5:7], names
    assert compression.state_dict()["layout"] == [["4.weight", "2.weight"], ["0.weight"]]


@scenario("mpirun 2", long=["mpirun 3", "gloo 2"])
def memory_budget() -> None:
    """Beyond Horovod's own: one residual, one decoded set, payloads: 2.1 times the gradient."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
    compression = hvd_compress.SIDCo(0.01)
    opt = optimizer(model, compression)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(2, 1024)).sum().backward()
        opt.step()
    engine = compression.runtime.driver._served.engine  # type: ignore[union-attr]
    held = 0
    for filling in engine._filling:
        bucket = filling.bucket.bucket
        held += sum(a.nbytes for a in (*bucket.memory.arrays().values(), bucket.memory._spare))
        held += sum(a.nbytes for _, a in bucket._arrays.values())
    gradient = 4 * sum(p.numel() for p in model.parameters())
    assert held < 2.25 * gradient, held / gradient


@scenario("mpirun 2", long=["gloo 2", "mpirun 4"], first=True)
def a_collective_without_a_name_after_the_backward_pass() -> None:
    """Horovod numbers it by what the process has started: the same on all ranks, however slow a rank's thread is."""
    model, compression = network(), hvd_compress.SIDCo(0.05, bucket_mb=0.05)
    opt = optimizer(model, compression)

    def mean_of_ranks(t: int) -> None:
        assert hvd.allreduce(torch.tensor(float(hvd.rank()))).item() == (hvd.size() - 1) / 2

    train(model, opt, steps=2)
    worker = compression.runtime.driver._served._worker
    for t in range(2, 8):
        worker.submit(time.sleep, 0.05 * hvd.rank())
        train(model, opt, steps=1, first=t, before_step=mean_of_ranks)
    assert_replicas_equal(model)
