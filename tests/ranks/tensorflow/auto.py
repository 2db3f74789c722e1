"""Scenarios under TensorFlow: ``Auto`` changes compressors while the graph stays as it is, and leaves gradients to
Horovod."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

from hvd_compress import Auto
from hvd_compress.state_format import seal
from tests.ranks.checks import expect, memory
from tests.ranks.clocks import Clock, go_wild
from tests.ranks.scenario import scenario
from tests.ranks.tensorflow.training import assert_replicas_equal, batches, digest, gather, network, stepping, train

LONG = ["mpirun 3", "mpirun 4", "mpirun 6", "gloo 2"]


@scenario("mpirun 2", long=LONG)
def replicas_are_equal_whatever_the_clocks_say() -> None:
    model, compression = network(), Auto(look_again=100)
    go_wild(compression, hvd.rank())
    train(stepping(model, compression), steps=130)
    assert_replicas_equal(model)
    assert len(set(gather(str(compression.stats()["auto"])))) == 1
    assert compression.stats()["total"]["steps"] == 130


@scenario("mpirun 2", long=LONG)
def it_goes_back_to_uncompressed_with_an_empty_memory() -> None:
    model, compression = network(), Auto(["dense", "sidco"], look_again=100)
    clock = Clock(compression, hvd.rank(), {"Dense": 1.0, "SIDCo": 1.01})
    step, ran = stepping(model, compression), []
    for t, (inputs, labels) in enumerate(batches(160)):
        ran.append(clock.tick(t))
        if ran[-2:] == ["flush", "Dense"]:
            assert not any(array.any() for array in memory(compression).values())
        step(inputs, labels)
    assert ran.count("SIDCo") > 10
    assert ran.count("flush") > 2
    assert compression.choosing.trials.looks == 2
    assert compression.stats()["auto"]["choice"] == "Dense()"
    assert_replicas_equal(model)


@scenario("mpirun 2", long=["gloo 2"])
def uncompressed_is_horovod_s_own_way() -> None:
    """With two ranks a sum has one rounding, so that the first step is the same, too; and all others are Horovod's."""
    for graph, keywords in ((True, {}), (False, {}), (True, {"op": hvd.Sum, "lr": 0.1})):
        digests = []
        compression = Auto(["dense"])
        for used in (hvd.Compression.none, compression):
            model = network()
            train(stepping(model, used, graph=graph, **keywords), steps=60)
            digests.append(digest(model))
        assert digests[0] == digests[1]
        total = compression.stats()["total"]
        nbytes = 60 * sum(4 * int(np.prod(v.shape)) for v in model.trainable_variables)
        assert (total["steps"], total["dense_bytes"]) == (60, nbytes)
        assert nbytes < total["sent_bytes"] < 1.01 * nbytes


@scenario("mpirun 2")
def several_steps_in_one_call_of_keras() -> None:
    digests = []
    compression = Auto(["dense"])
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*(map(np.array, b) for b in batches(60)), strict=True))
    for used in (hvd.Compression.none, compression):
        model = network()
        optimizer = hvd_keras.DistributedOptimizer(tf.keras.optimizers.SGD(0.1), compression=used)
        model.compile(optimizer, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), steps_per_execution=4)
        model.fit(inputs, labels, batch_size=32, epochs=1, shuffle=False, verbose=0)
        digests.append(digest(model))
    assert digests[0] == digests[1]
    assert compression.stats()["total"]["steps"] == 60


@scenario("mpirun 2")
def saved_in_the_middle_of_horovod_s_own_steps() -> None:
    model, compression = network(), Auto(["dense"])
    step = stepping(model, compression)
    train(step, steps=20)
    state, weights = compression.state_dict(), [v.numpy() for v in model.variables]
    assert state["step"] == 20
    train(step, steps=40, first=20)
    again, resumed = network(), Auto(["dense"])
    for variable, value in zip(again.variables, weights, strict=True):
        variable.assign(value)
    resumed.load_state_dict(renamed(state, model, again))
    train(stepping(again, resumed), steps=40, first=20)
    assert digest(again) == digest(model)
    assert resumed.state_dict()["step"] == compression.state_dict()["step"] == 60


def renamed(state: dict[str, Any], model: Any, other: Any) -> dict[str, Any]:
    """Return a state of one model for another of the same layers, whose names have other numbers."""
    names = {v.name.removesuffix(":0"): w.name.removesuffix(":0") for v, w in zip(model.variables, other.variables)}  # noqa: B905
    state = {**state, "memory": {names[name]: arrays for name, arrays in state["memory"].items()}}
    state["layout"] = [[names[name] for name in bucket] for bucket in state["layout"]]
    return seal(state)


@scenario("mpirun 2")
def another_model_needs_another_one() -> None:
    compression = Auto(["dense"])
    train(stepping(network(), compression), steps=2)
    other = stepping(network(), compression)
    expect(ValueError, "an Auto of its own", run=lambda: train(other, steps=1))
