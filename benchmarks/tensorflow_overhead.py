"""What the TensorFlow driver costs: milliseconds of a step with and without compression, on an unthrottled loopback.

    mpirun -np 2 python benchmarks/tensorflow_overhead.py --model mobilenet --steps 20

On such a network nothing can be gained, so what a compressor costs is all there is to see. The variants take turns, a
few steps at a time, so that a machine that is busy with other things disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import hvd_compress

TURN = 4
"""Steps of one variant before it is the next one's turn."""


def network(name: str) -> tuple[Any, tuple[int, ...]]:
    """MobileNetV2 without weights (158 gradients), or the examples' multi-layer perceptron (6)."""
    tf.keras.utils.set_random_seed(0)
    if name == "mobilenet":
        shape = (96, 96, 3)
        return tf.keras.applications.MobileNetV2(shape, weights=None, classes=10, classifier_activation=None), shape
    layers = [tf.keras.layers.Dense(width, "relu") for width in (512, 512)]
    return tf.keras.Sequential([tf.keras.Input((784,)), *layers, tf.keras.layers.Dense(10)]), (784,)


def stepping(name: str, batch: int, **keywords: Any) -> Callable[[], Any]:
    """A training step of a model of its own."""
    model, shape = network(name)
    rng = np.random.default_rng(hvd.rank())
    inputs = tf.constant(rng.standard_normal((batch, *shape)).astype(np.float32))
    labels = tf.constant(rng.integers(0, 10, batch))
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tf.keras.optimizers.SGD(0.01)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        if keywords:
            tape = hvd.DistributedGradientTape(tape, **keywords)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


def variants(groups: int) -> dict[str, dict[str, Any]]:
    """What is compared: the keywords of ``DistributedGradientTape``."""
    none = hvd.Compression.none
    return {
        "alone (no communication)": {},
        "Horovod": {"compression": none},
        f"Horovod, groups={groups}": {"compression": none, "groups": groups},
        "Dense()": {"compression": hvd_compress.Dense()},
        "SIDCo(0.01)": {"compression": hvd_compress.SIDCo(0.01)},
        f"SIDCo(0.01), groups={groups}": {"compression": hvd_compress.SIDCo(0.01), "groups": groups},
        "SIDCo(0.01), a bucket a gradient": {"compression": hvd_compress.SIDCo(0.01, bucket_mb=1e-6)},
    }


def note(text: str, begun: float) -> None:
    """How far it has come, on standard error: a machine that is busy takes minutes over the tracing alone."""
    if hvd.rank() == 0:
        print(f"{time.perf_counter() - begun:6.1f} s  {text}", file=sys.stderr, flush=True)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--model", choices=("mobilenet", "mlp"), default="mobilenet")
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--steps", type=int, default=20, help="of every variant")
    flags.add_argument("--groups", type=int, default=4)
    chosen = flags.parse_args()
    faulthandler.enable()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    hvd.init()
    cases = variants(chosen.groups)
    steps = {label: stepping(chosen.model, chosen.batch, **keywords) for label, keywords in cases.items()}
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    begun = time.perf_counter()
    for label, step in steps.items():
        for _ in range(2):
            step()
        note(f"{label}: traced", begun)
    for turn in range(max(1, chosen.steps // TURN)):
        note(f"turn {turn + 1}", begun)
        for label, step in steps.items():
            hvd.allreduce(tf.zeros(1), name="barrier")
            for _ in range(TURN):
                began = time.perf_counter()
                step()
                seconds[label].append(time.perf_counter() - began)
    if hvd.rank() == 0:
        dense = np.median(seconds["Horovod"])
        print(f"{chosen.model}, {hvd.size()} ranks, batch {chosen.batch}, median and quartiles of a step")
        for label, taken in seconds.items():
            low, middle, high = 1000 * np.percentile(taken, (25, 50, 75))
            print(f"{label:34} {middle:8.1f} ms [{low:.1f}, {high:.1f}]  {middle / 1000 / dense:5.2f} x")
        for label, keywords in cases.items():
            compression = keywords.get("compression")
            if isinstance(compression, hvd_compress.Compressor):
                total = compression.stats()["total"]
                parts = [
                    f"{key} {1000 * total['seconds'][key] / total['steps']:.2f} ms"
                    for key in ("compress", "decompress")
                ]
                buckets = len(compression.state_dict()["layout"])
                print(f"{label:34} in Python: {', '.join(parts)}; {buckets} buckets; ratio {total['ratio']:.1f}")


if __name__ == "__main__":
    main()
