"""A job over MPI in which Horovod is shut down and initialized again: with ``mpi4py``, MPI had been initialized before
it, and all goes on; without, ``hvd.init`` raises."""

import sys

import horovod.torch as hvd

import hvd_compress
from tests.ranks.checks import expect
from tests.ranks.torch.oracle import check_ledger
from tests.ranks.torch.training import network, optimizer, train

if __name__ == "__main__":
    if "mpi4py" in sys.argv:
        from mpi4py import MPI  # noqa: F401
    hvd.init()
    model, compression = network(), hvd_compress.TopK(0.05)
    train(model, optimizer(model, compression), steps=2)
    hvd.shutdown()
    if "mpi4py" in sys.argv:
        hvd.init()
        check_ledger(network(), hvd_compress.TopK(0.05))
    else:
        expect(RuntimeError, "finalized MPI", "from mpi4py import MPI", "--gloo", run=hvd.init)
