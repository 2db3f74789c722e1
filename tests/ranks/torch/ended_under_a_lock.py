"""Horovod ends on a rank that has Python's lock, while gradients and an exchange are under way: as where a worker is
lost just when another one starts a collective. Whatever Horovod's thread lets go of, it must not need that lock."""

import ctypes
import os
import time

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from horovod.torch import mpi_ops

import hvd_compress
from tests.ranks.checks import expect
from tests.ranks.torch.training import network, optimizer, train

if __name__ == "__main__":
    hvd.init()
    model = network()
    train(model, optimizer(model, hvd_compress.TopK(0.05)), steps=2)
    if hvd.rank() == 0:
        model(torch.ones(3, 64)).sum().backward()
        unfinished = hvd.allgather_async(torch.ones(2), name="unfinished")
        time.sleep(0.5)  # so that Horovod's thread has all of it
        ctypes.PyDLL(mpi_ops._basics.MPI_LIB_CTYPES._name).horovod_shutdown()  # with Python's lock
    else:
        expect(HorovodInternalError, run=lambda: hvd.allreduce(torch.ones(1), name="until the other rank has ended"))
        hvd.shutdown()  # when its own thread has ended, too
    os._exit(0)  # without the errors of what was not finished
