"""Scenarios: LGC through all its phases, with the trainer in its own process and between steps."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from hvd_compress.drivers import simulation
from hvd_compress.drivers.torch.transport import HorovodTransport
from hvd_compress.lgc.route import SAID
from tests.ranks.checks import expect, learns, memory
from tests.ranks.recording import recorded
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, batches, gather, network, optimizer, train

SMALL: dict[str, Any] = {"encoder": (8, 8, 4), "decoder": (8, 8), "dense_steps": 2, "train_steps": 60}


def lgc(ratio: float = 0.05, **keywords: Any) -> hvd_compress.LGC:
    return hvd_compress.LGC(ratio, **{**SMALL, **keywords})


def routes() -> list[str]:
    """What this job allows."""
    return ["allgather", "mpi"] if hvd.mpi_enabled() else ["allgather"]


def until_decided(compression: hvd_compress.LGC, model: torch.nn.Module, opt: Any) -> list[float]:
    """Train until phase 2 is over; all ranks leave it in the same step, whenever that is."""
    losses: list[float] = []
    while len(losses) < 2000:
        losses += train(model, opt, steps=20, first=len(losses))
        phases = gather(compression.stats()["lgc"]["phase"])
        assert len(set(phases)) == 1, phases
        if phases[0] in ("learned", "topk"):
            return losses
        time.sleep(0.2)
    raise AssertionError(f"never came to an end: {compression.stats()['lgc']}")


@scenario("mpirun 2", long=["gloo 2"])
def all_phases_with_a_process() -> None:
    for variant in ("allreduce", "gather"):
        compression = lgc(variant=variant, floor=False, leader=hvd.size() - 1)
        model = network()
        opt = optimizer(model, compression, lr=0.05)
        losses = until_decided(compression, model, opt)
        losses += train(model, opt, steps=50, first=len(losses))
        learns(losses)
        assert_replicas_equal(model)
        report = compression.stats()["lgc"]
        assert report["switch"] is not None
        assert len(set(gather(report["switch"]))) == 1
        assert report["seconds"]["encode"] > 0
        assert report["route"]["by"] == SAID[routes()[-1]]
        assert (report["trainer"] or {}).get("kind") == ("process" if hvd.rank() == hvd.size() - 1 else None)


@scenario(long=["mpirun 2", "gloo 2"])
def simulation_sends_the_same_bytes() -> None:
    """The gradients of real training, through all phases, replayed in the simulation, which trains as this does."""
    for variant in ("allreduce", "gather"):
        compression = lgc(variant=variant, floor=False, trainer="inline", bucket_mb=0.05)
        model = network()
        names = [name for name, p in model.named_parameters() if p.dim() > 1 and p.numel() >= 1024]
        weights = [p for p in model.parameters() if p.dim() > 1 and p.numel() >= 1024]
        opt = optimizer(model, compression, lr=0.05)
        gradients = []
        with recorded(HorovodTransport) as sent:
            for inputs, labels in batches(75):
                opt.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), labels).backward()
                gradients.append([p.grad.numpy().copy() for p in weights])
                opt.step()
        assert compression.stats()["lgc"]["phase"] == "learned"
        layout = [["2.weight"], ["0.weight"], ["4.weight"]]  # the last layer is too small to be compressed
        assert sorted(compression.state_dict()["layout"]) == sorted(layout), compression.state_dict()["layout"]
        everyone = gather((gradients, sent))
        replica = hvd_compress.Simulation(
            lgc(variant=variant, floor=False, trainer="inline", bucket_mb=0.05, dense=["0.*"], topk_only=[]),
            workers=hvd.size(),
        )
        order = [2, 1, 0]  # the last layer's gradients come first
        with recorded(simulation.SimulatedTransport) as simulated:
            for t in range(75):
                replica.step({names[i]: [everyone[r][0][t][i] for r in range(hvd.size())] for i in order})
        for rank in range(hvd.size()):
            real = sorted((name, h) for _, name, h in everyone[rank][1] if "round" in name)
            replayed = sorted((name, h) for r, name, h in simulated if r == rank and "round" in name)
            assert len(real) > 300
            assert real == [(name, h) for name, h in replayed], f"rank {rank}, {variant}"


class Warnings(logging.Handler):
    """The warnings of the package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("hvd_compress").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@scenario("mpirun 2", long=["gloo 2"])
def a_killed_trainer_leaves_top_k() -> None:
    heard = Warnings()
    compression = lgc(train_steps=10**6, floor=False)
    model = network()
    opt = optimizer(model, compression, lr=0.05)
    losses = train(model, opt, steps=10)
    if hvd.rank() == 0:
        os.kill(compression.learning.supervisor.training.pid, signal.SIGKILL)  # type: ignore[union-attr]
    losses += until_decided(compression, model, opt)
    learns(losses)
    assert_replicas_equal(model)
    assert len(heard.said) == (hvd.rank() == 0), heard.said
    assert "died" in compression.stats()["lgc"]["stays_with_top_k"]
    if hvd.rank() == 0:
        assert "stays with top-k" in heard.said[0]
        assert "has ended" in heard.said[0]


@scenario(long=["mpirun 2", "gloo 2"])
def a_step_that_is_not_finite() -> None:
    for route in routes():
        compression = lgc(floor=False, trainer="inline", route=route)
        model = network()
        opt = optimizer(model, compression, lr=0.05)
        for t, (inputs, labels) in enumerate(batches(90)):
            opt.zero_grad()
            if t in (5, 30, 63, 85) and hvd.rank() == t % hvd.size():
                inputs *= float("nan")
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.synchronize()
            bad = not torch.isfinite(model[2].weight.grad).all()
            assert bad == (t in (5, 30, 63, 85))
            if not bad:
                with opt.skip_synchronize():
                    opt.step()
        assert_replicas_equal(model)
        report = compression.stats()
        assert report["total"]["skipped_steps"] == 4
        assert report["lgc"]["phase"] == "learned"
        samples = gather([(report["lgc"]["trainer"] or {}).get("samples")])[0][0]
        assert 50 <= samples <= 58, samples  # of 60 steps, two were not finite


@scenario("mpirun 2", long=["gloo 2"])
def a_flush_in_phase_2_loses_nothing() -> None:
    """The sum of all means is the mean of all gradients; a rate of 0 keeps them what they are."""
    for route in routes():
        compression = lgc(trainer="inline", route=route, bucket_mb=0.05)
        model = network()
        opt = optimizer(model, compression, lr=0.0)
        given = sent = 0.0
        for t, (inputs, labels) in enumerate(batches(9)):
            opt.zero_grad()
            if t == 8 and hvd.rank() == 1:
                compression.flush()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            given = given + model[2].weight.grad.numpy().copy()
            opt.step()
            sent = sent + model[2].weight.grad.numpy()
        assert not any(array.any() for array in memory(compression).values())
        np.testing.assert_allclose(sent, np.mean(gather(given), axis=0), rtol=1e-4, atol=1e-5)


@scenario("mpirun 2", long=["gloo 2"])
def resuming_is_going_on() -> None:
    """In phase 3, on all ranks."""
    _resuming_is_going_on(70)


@scenario(long=["mpirun 2", "gloo 2"])
def resuming_in_phase_2() -> None:
    _resuming_is_going_on(30)


def _resuming_is_going_on(stop: int) -> None:
    runs = []
    for resumes in (False, True):
        compression = lgc(floor=False, trainer="inline")
        model = network()
        opt = optimizer(model, compression, lr=0.05)
        train(model, opt, steps=stop)
        if resumes:
            state = compression.state_dict()
            compression = lgc(floor=False, trainer="inline")
            compression.load_state_dict(state)
            weights, model = model.state_dict(), network()
            model.load_state_dict(weights)
            opt = optimizer(model, compression, lr=0.05)
        train(model, opt, steps=90 - stop, first=stop)
        runs.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    assert runs[0] == runs[1]


@scenario(long=["mpirun 2", "gloo 2"])
def resuming_in_phase_2_with_a_process() -> None:
    """Over MPI the communicator is made anew."""
    compression = lgc(floor=False)
    model = network()
    train(model, optimizer(model, compression, lr=0.05), steps=30)
    state = compression.state_dict()
    compression = lgc(floor=False)
    compression.load_state_dict(state)
    weights, model = model.state_dict(), network()
    model.load_state_dict(weights)
    until_decided(compression, model, optimizer(model, compression, lr=0.05))
    assert_replicas_equal(model)
    report = compression.stats()["lgc"]
    assert report["phase"] == "learned"
    assert gather([(report["trainer"] or {}).get("samples")])[0][0] > 40


@scenario("gloo 2")
def a_route_that_does_not_exist() -> None:
    model = network()
    opt = optimizer(model, lgc(route="mpi"))
    words = "route='mpi' cannot be", "does not run over MPI"
    expect(ValueError, *words, run=lambda: train(model, opt, steps=1))


@scenario("mpirun 2", long=["gloo 2"])
def a_leader_that_is_no_rank() -> None:
    model = network()
    opt = optimizer(model, lgc(leader=7))
    expect(ValueError, "leader must be one of", "got 7", run=lambda: train(model, opt, steps=1))
    hvd.barrier()
