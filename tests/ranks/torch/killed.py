"""A job in which the last rank kills itself in step 6; the others must not wait for ever."""

import os
import signal
import sys

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.torch.training import network, optimizer, train


def before_step(t: int) -> None:
    if hvd.rank() == 0:
        sys.stdout.write(f"step {t}\n")
        sys.stdout.flush()
    if t == 6 and hvd.rank() == hvd.size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    hvd.init()
    torch.set_num_threads(1)
    model = network()
    train(model, optimizer(model, hvd_compress.SIDCo(0.05)), before_step=before_step)
