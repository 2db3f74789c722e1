"""One rank of the exchange with which ``hvd-compress doctor`` tries Horovod; also by hand:

mpirun -np 2 python -m hvd_compress.cli.smoke_test torch
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from hvd_compress import TopK

SHAPE = (64, 32)


def torch_step() -> tuple[int, int, float]:
    """Train a step whose gradient is 1 on rank 0, 2 on rank 1, and so on.

    Return rank, ranks and the mean that arrived.
    """
    import horovod.torch as hvd
    import torch

    hvd.init()
    weight = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([weight], lr=1.0), named_parameters=[("weight", weight)], compression=TopK(1.0)
    )
    (weight * (hvd.rank() + 1.0)).sum().backward()
    optimizer.step()
    result = hvd.rank(), hvd.size(), _all_equal(-weight.detach().numpy())
    hvd.shutdown()
    return result


def tensorflow_step() -> tuple[int, int, float]:
    """Do the same under TensorFlow."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    weight = tf.Variable(tf.zeros(SHAPE))
    with tf.GradientTape() as plain:
        loss = tf.reduce_sum(weight * (hvd.rank() + 1.0))
    tape = hvd.DistributedGradientTape(plain, compression=TopK(1.0))
    result = hvd.rank(), hvd.size(), _all_equal(tape.gradient(loss, [weight])[0].numpy())
    hvd.shutdown()
    return result


def _all_equal(array: object) -> float:
    import numpy as np

    values = np.unique(np.asarray(array))
    return float(values[0]) if len(values) == 1 else float("nan")


STEPS = {"torch": torch_step, "tensorflow": tensorflow_step}


def main(framework: str, folder: str | None = None, limit: str = "600") -> None:
    """Write ``FOLDER/rank.PID.json``, or print a line; end after ``limit`` seconds, come what may."""
    signal.alarm(int(limit))  # whoever started this may be gone
    rank, ranks, mean = STEPS[framework]()
    found = {"rank": rank, "ranks": ranks, "mean": mean, "right": mean == (ranks + 1) / 2}
    if folder is None:
        sys.stdout.write(f"{json.dumps(found)}\n")
    else:
        (Path(folder) / f"rank.{os.getpid()}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
