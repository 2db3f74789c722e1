"""Replay the gradients of ``FOLDER/torch.N.npz`` under TensorFlow; write the same things to ``tensorflow.N.npz``."""

from __future__ import annotations

import itertools
from pathlib import Path

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvd_compress.runtime.graph_transport import GraphTransport
from tests.ranks.payloads import STEPS, cases, write
from tests.ranks.recording import recorded


def write_all(folder: str) -> None:
    file = np.load(Path(folder) / f"torch.{hvd.rank()}.npz")
    gradients = {key: file[key] for key in file.files if "/gradient/" in key}
    sent, means = {}, {}
    for case, compression in cases().items():
        keys = (f"{case}/gradient/bucket{number}" for number in itertools.count())
        buckets = list(itertools.takewhile(lambda key: f"{key}/0" in gradients, keys))
        variables = [tf.Variable(tf.zeros(gradients[f"{key}/0"].shape)) for key in reversed(buckets)]

        @tf.function
        def step(wanted, variables=variables, compression=compression):
            with tf.GradientTape() as tape:
                loss = tf.add_n([tf.reduce_sum(v * g) for v, g in zip(variables, wanted, strict=True)])
            return hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, variables)

        with recorded(GraphTransport, keep=lambda array: array.copy()) as sent[case]:
            for t in range(STEPS):
                got = step([tf.constant(gradients[f"{key}/{t}"]) for key in reversed(buckets)])
                for key, mean in zip(reversed(buckets), got, strict=True):
                    means[f"{key}/{t}".replace("gradient", "mean")] = mean.numpy()
    write(Path(folder) / f"tensorflow.{hvd.rank()}.npz", gradients, sent, means)
