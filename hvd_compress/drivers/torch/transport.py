"""Collectives on NumPy arrays through ``horovod.torch``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import horovod.torch as hvd
import torch

from hvd_compress.drivers.nodes import sets_of
from hvd_compress.exchange import (
    AllGather,
    AllReduce,
    AllToAll,
    Array,
    Broadcast,
    Collective,
    ReduceScatter,
    sent_array,
)
from hvd_compress.runtime.transport import Handle, mpi_ranks, result_alone, shaped
from hvd_compress.topology import ALL, Topology

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
    collective: Collective
    members: tuple[int, ...]
    handle: int | None
    """None: it is among this rank alone."""
    output: torch.Tensor | None = None


class HorovodTransport:
    """What a worker sends is not copied; names are Horovod's identity of a collective."""

    def __init__(self, process_set: Any, topology: Topology | None = None) -> None:
        if not hvd.is_initialized():
            raise RuntimeError("Horovod is not initialized; call hvd.init() first")
        if process_set.rank() is None or process_set.rank() < 0:
            raise ValueError(f"this rank is not in the process set {process_set}, or the set was not added to Horovod")
        self.rank: int = process_set.rank()
        self.workers: int = process_set.size()
        self.simulated = False
        self.mpi = mpi_ranks(hvd, process_set)
        self.topology = topology or Topology.single(self.workers)
        self._sets = {**sets_of(self.topology), self.topology.members(ALL, 0): process_set}
        self._ops = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}

    def start(self, collective: Collective, name: str) -> Handle:
        members = self.topology.members(collective.scope, self.rank)
        if self.topology.alone(collective.scope, self.rank):
            return _Started(collective, members, None)
        process_set = self._sets[members]
        values = torch.from_numpy(sent_array(collective))
        if isinstance(collective, AllGather):
            handle = hvd.allgather_async(values, name=name, process_set=process_set)
        elif isinstance(collective, AllReduce):
            op = self._ops[collective.op]
            handle = hvd.allreduce_async_(values, name=name, op=op, process_set=process_set)
        elif isinstance(collective, Broadcast):
            root = process_set.ranks[collective.root]
            handle = hvd.broadcast_async_(values, root, name=name, process_set=process_set)
        elif isinstance(collective, ReduceScatter):
            handle = hvd.reducescatter_async(values, name=name, op=hvd.Sum, process_set=process_set)
        else:
            handle = hvd.alltoall_async(values, name=name, process_set=process_set)
        return _Started(collective, members, handle)

    def done(self, handle: _Started) -> bool:
        return handle.handle is None or bool(hvd.poll(handle.handle))

    def wait(self, handle: _Started) -> None:
        if handle.output is None and handle.handle is not None:
            await_asleep(handle.handle)
            output = hvd.synchronize(handle.handle)
            handle.output = output[0] if isinstance(handle.collective, AllToAll) else output  # and what each one sent

    def result(self, handle: _Started) -> Array:
        self.wait(handle)
        if handle.output is None:
            return result_alone(handle.collective)
        return shaped(handle.collective, handle.output.numpy(), len(handle.members))
