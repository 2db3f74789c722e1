"""Scenarios under TensorFlow: LGC through all its phases."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

import hvd_compress
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.autoencoder import Autoencoder, to_bytes
from hvd_compress.lgc.route import SAID
from tests.ranks.checks import expect, learns
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import (
    assert_replicas_equal,
    batches,
    digest,
    gather,
    network,
    stepping,
    train,
)

SMALL: dict[str, Any] = {"encoder": (8, 8, 4), "decoder": (8, 8), "dense_steps": 2, "train_steps": 60}


def lgc(**keywords: Any) -> hvd_compress.LGC:
    return hvd_compress.LGC(0.05, **{**SMALL, **keywords})


@scenario("mpirun 2", long=["horovodrun 2"])
def all_phases() -> None:
    """In one graph, traced once."""
    _all_phases("gather", bucket_mb=0.03, dense=[], topk_only=[], route="mpi")


@scenario(long=["mpirun 2", "horovodrun 2"])
def all_phases_of_the_other_kinds() -> None:
    _all_phases("gather")
    _all_phases("allreduce")
    _all_phases("allreduce", bucket_mb=0.03, dense=[], topk_only=[], route="mpi")


def _all_phases(variant: str, **keywords: Any) -> None:
    compression = lgc(variant=variant, floor=False, trainer="inline", **keywords)
    model = network()
    step = stepping(model, compression)
    learns(train(step))
    train(step)
    assert_replicas_equal(model)
    report = compression.stats()["lgc"]
    assert report["switch"] is not None, report
    assert len(set(gather(str(report["switch"])))) == 1
    assert report["seconds"]["encode"] > 0
    assert report["route"]["by"] == SAID[keywords.get("route", "allgather")]
    if "route" in keywords:
        assert report["route"].get("dropped", 0) == report["route"].get("incomplete", 0) == 0
        assert report["route"]["received" if hvd.rank() == 0 else "sent"] > 100


@scenario("mpirun 2", long=["horovodrun 2"])
def weights_of_a_file() -> None:
    """Codes from the first step on, but for the first layer; weights that are worth nothing are given up."""
    weights = Path(tempfile.gettempdir()) / f"hvd_compress-test-{gather(str(os.getpid()))[0]}.safetensors"
    if hvd.rank() == 0:
        weights.write_bytes(to_bytes(Autoencoder(Architecture(encoder=(8, 8, 4), decoder=(8, 8)))))
    gather("written")
    try:
        compression = lgc(weights=str(weights))
        model = network()
        step = stepping(model, compression)
        learns(train(step))
    finally:
        gather("read")
        weights.unlink(missing_ok=True)
    assert_replicas_equal(model)
    assert compression.stats()["lgc"]["seconds"]["encode"] > 0
    assert compression.stats()["lgc"]["stays_with_top_k"] == "the autoencoder has ceased to reconstruct"


@scenario(long=["mpirun 2", "horovodrun 2"])
def a_killed_trainer_leaves_top_k() -> None:
    compression = lgc(train_steps=10**6)
    model = network()
    step = stepping(model, compression)
    losses = train(step)
    if hvd.rank() == 0:
        os.kill(compression.learning.supervisor.training.pid, signal.SIGKILL)  # type: ignore[union-attr]
        time.sleep(0.5)
    losses += train(step)
    learns(losses)
    assert compression.stats()["lgc"]["phase"] == "topk"
    assert_replicas_equal(model)


@scenario(long=["mpirun 2", "horovodrun 2"])
def resuming_is_going_on() -> None:
    digests = []
    for resumes in (False, True):
        compression = lgc(floor=False, trainer="inline")
        model = network()
        step = stepping(model, compression)
        for inputs, labels in batches(70):
            step(inputs, labels)
        if resumes:
            state, compression = compression.state_dict(), lgc(floor=False, trainer="inline")
            compression.load_state_dict(state)
            step = stepping(model, compression)
        for inputs, labels in batches(15, 70):
            step(inputs, labels)
        assert compression.stats()["lgc"]["phase"] == "learned"
        digests.append(digest(model))
    assert digests[0] == digests[1]


@scenario("mpirun 2", long=["horovodrun 2"])
def a_leader_that_is_no_rank() -> None:
    model = network()
    step = stepping(model, lgc(leader=7))

    def one() -> None:
        for inputs, labels in batches(1):
            step(inputs, labels)

    expect((ValueError, tf.errors.OpError), "leader must be one of", "got 7", run=one)
