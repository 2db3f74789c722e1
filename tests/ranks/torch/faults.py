"""Scenarios: what the processes of a job suffer: they are stopped for a while, they fork, and threads look on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, digest, network, optimizer, train

STOPPED = 20
"""Seconds."""


def undisturbed(disturb: Callable[[int, Any], None], steps: int = 12) -> None:
    """Train with and without what ``disturb`` does in every step's middle, given the compressor: all bits are alike."""
    digests = []
    for disturbance in (lambda _t, _compression: None, disturb):
        model, compression = network(), hvd_compress.SIDCo(0.05, bucket_mb=0.05)

        def before_step(t: int) -> None:
            disturbance(t, compression)  # noqa: B023

        train(model, optimizer(model, compression), steps=steps, before_step=before_step)
        assert_replicas_equal(model)
        digests.append(digest(model))
    assert digests[0] == digests[1]


@scenario(long=["mpirun 2", "gloo 2"])
def a_rank_that_stops_for_a_while_goes_on() -> None:
    def stop(t: int, _: Any) -> None:
        if t == 6 and hvd.rank() == hvd.size() - 1:
            subprocess.Popen(["sh", "-c", f"sleep {STOPPED}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    undisturbed(stop)


@scenario("mpirun 2", long=["gloo 2"])
def processes_that_are_forked_in_a_step() -> None:
    """As data loaders are: they have the compressor's memory, and none of its threads."""

    def fork(t: int, _: Any) -> None:
        if t in (3, 7):
            data = torch.utils.data.TensorDataset(torch.arange(8.0))
            loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="fork")
            assert [batch.sum().item() for (batch,) in loader] == [1.0, 5.0, 9.0, 13.0]

    undisturbed(fork)


@scenario("mpirun 2", long=["mpirun 4", "gloo 2"])
def threads_that_look_on() -> None:
    """They get statistics at any time; a state whenever no step is under way, of one moment, and else an error."""
    end, seen, wrong = threading.Event(), [0, 0], []

    def look(compression: Any) -> None:
        while not end.is_set():
            try:
                compression.stats()
                state = compression.state_dict()
                seen[0] += 1
                if state["steps"] and set(state["steps"]) != {state["step"]}:
                    wrong.append(state["steps"])
            except RuntimeError:
                seen[1] += 1
            except Exception as error:
                wrong.append(error)

    watchers: list[threading.Thread] = []

    def start(t: int, compression: Any) -> None:
        if t == 0:
            watchers.append(threading.Thread(target=look, args=(compression,)))
            watchers[0].start()

    try:
        undisturbed(start, steps=20)
    finally:
        end.set()
        for watcher in watchers:
            watcher.join()
    assert not wrong
    assert min(seen) > 0, f"{seen[0]} states were read, {seen[1]} refused: nothing was found out"
