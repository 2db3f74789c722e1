"""Collectives on NumPy arrays through ``horovod.torch``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import horovod.torch as hvd
import torch

from hvd_compress.exchange import AllGather, AllReduce, Array, Broadcast, Collective
from hvd_compress.runtime.transport import Handle, mpi_ranks

SHORTEST, LONGEST = 2e-5, 5e-4
"""Seconds between two looks at whether a collective is done."""


def await_asleep(handle: int) -> None:
    """Return when Horovod's collective is done, well or not. ``hvd.synchronize`` looks without a pause, and takes a
    core from the threads that do the work."""
    pause = SHORTEST
    while not hvd.poll(handle):
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)


@dataclass(eq=False)
class _Started:
    handle: int
    values: Array
    rows: int
    output: torch.Tensor | None = None


class HorovodTransport:
    """What a worker sends is not copied; names are Horovod's identity of a collective."""

    def __init__(self, process_set: Any) -> None:
        if not hvd.is_initialized():
            raise RuntimeError("Horovod is not initialized; call hvd.init() first")
        if process_set.rank() is None or process_set.rank() < 0:
            raise ValueError(f"this rank is not in the process set {process_set}, or the set was not added to Horovod")
        self.rank: int = process_set.rank()
        self.workers: int = process_set.size()
        self.simulated = False
        self.mpi = mpi_ranks(hvd, process_set)
        self._process_set = process_set
        self._ops = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}

    def start(self, collective: Collective, name: str) -> Handle:
        if isinstance(collective, AllGather):
            source = torch.from_numpy(collective.payload)
            handle = hvd.allgather_async(source, name=name, process_set=self._process_set)
            return _Started(handle, collective.payload, self.workers)
        values = torch.from_numpy(collective.values)
        if isinstance(collective, AllReduce):
            op = self._ops[collective.op]
            handle = hvd.allreduce_async_(values, name=name, op=op, process_set=self._process_set)
        else:
            assert isinstance(collective, Broadcast)
            root = self._process_set.ranks[collective.root]
            handle = hvd.broadcast_async_(values, root, name=name, process_set=self._process_set)
        return _Started(handle, collective.values, 0)

    def done(self, handle: _Started) -> bool:
        return bool(hvd.poll(handle.handle))

    def wait(self, handle: _Started) -> None:
        if handle.output is None:
            await_asleep(handle.handle)
            handle.output = hvd.synchronize(handle.handle)

    def result(self, handle: _Started) -> Array:
        self.wait(handle)
        if not handle.rows:
            return handle.values
        assert handle.output is not None
        gathered: Array = handle.output.numpy()
        if gathered.size != handle.rows * handle.values.size:
            return gathered  # flat: the exchange reports it
        return gathered.reshape(handle.rows, -1)
