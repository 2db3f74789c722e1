"""The same exchanges over mpi4py, on NumPy arrays: for MPI programs without Horovod."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.arrays import ArrayWorker, Gradients
from hvd_compress.exchange import AllGather, AllToAll, Array, Broadcast, Collective, ReduceScatter, sent_array
from hvd_compress.kernels import Float32
from hvd_compress.phased import phases
from hvd_compress.runtime.transport import result_alone
from hvd_compress.topology import ALL, NODE, PEERS, Topology


class MPIDriver:
    """Average named gradients over the ranks of a communicator, compressed.

        driver = MPIDriver(hvd_compress.SIDCo(0.01))
        means = driver.step({"layer1": gradient1, "layer2": gradient2})

    Args:
        compression: this rank's compressor; every rank passes the same arguments.
        comm: an mpi4py communicator, duplicated here; ``MPI.COMM_WORLD`` by default.

    Raises:
        ValueError: the compressor already serves another driver, or was given a GradScaler, or the ranks' compressors
            differ in which ranks they take to share a node.
    """

    def __init__(self, compression: Compressor, comm: MPI.Intracomm | None = None) -> None:
        self._transport = MPITransport((comm or MPI.COMM_WORLD).Dup(), compression)
        compression.runtime.refuse_loss_scale("drivers.mpi")
        self._worker = ArrayWorker(compression, self._transport)

    def step(self, gradients: Gradients) -> dict[str, Float32]:
        """Do one step, a collective call, with this rank's gradients by name: on all ranks the same names in one order.

        Returns the means, float32, in the gradients' shapes. Arrays below ``min_numel`` elements, or with
        one dimension, are averaged uncompressed.

        Raises:
            TypeError, ValueError: not floating point; names, shapes or configurations that differ. In the first step
                it is raised on every rank; later the others wait for this one until its process ends.
        """
        try:
            self._worker.begin(gradients)
        except (TypeError, ValueError) as error:
            self._wait(self._worker.refusing(error))
            raise
        for phase in (self._worker.agreeing(), self._worker.stepping()):
            self._wait(phase)
        return self._worker.means()

    def _wait(self, phase: Iterator[_Handle]) -> None:
        for handle in phase:  # the same order on every rank, which is how MPI tells collectives apart
            self._transport.wait(handle)


class _Handle(NamedTuple):
    request: MPI.Request
    result: Array


class MPITransport:
    """mpi4py's non-blocking collectives. They have no names in MPI: every rank must start them in the same order, so
    ``done`` never says yes before ``wait`` has, and later rounds start in the order they are waited for."""

    def __init__(self, comm: MPI.Intracomm, compressor: Compressor) -> None:
        self.rank = comm.Get_rank()
        self.workers = comm.Get_size()
        self.topology = phases(compressor).topology(self.workers, partial(_nodes, comm))
        if len(set(comm.allgather(self.topology))) > 1:
            raise ValueError("ranks disagree on which ranks share a node: give every rank the same compressor")
        self.simulated = False
        self.mpi = _ranks(comm)
        self._comms: dict[tuple[int, ...], MPI.Comm] = {self.topology.members(ALL, self.rank): comm}
        if not self.topology.plain:
            for scope in (NODE, PEERS):
                members = self.topology.members(scope, self.rank)
                self._comms[members] = comm.Split(members[0], members.index(self.rank))
        self._ops: dict[str, MPI.Op] = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}

    def start(self, collective: Collective, name: str) -> _Handle:
        members = self.topology.members(collective.scope, self.rank)
        if members not in self._comms:  # this rank alone
            return _Handle(MPI.REQUEST_NULL, result_alone(collective))
        comm = self._comms[members]
        values = sent_array(collective)
        result = values
        if isinstance(collective, AllGather):
            result = np.empty((len(members), len(values)), np.uint8)
            request = comm.Iallgather(values, result)
        elif isinstance(collective, AllToAll):
            result = np.empty_like(values)
            request = comm.Ialltoall(values, result)
        elif isinstance(collective, ReduceScatter):
            rows, length = values.shape
            counts = [length if place < rows else 0 for place in range(len(members))]
            result = np.empty(counts[members.index(self.rank)], values.dtype)
            request = comm.Ireduce_scatter(values, result, counts, op=MPI.SUM)
        elif isinstance(collective, Broadcast):
            request = comm.Ibcast(values, root=collective.root)
        elif values.dtype == np.float16:  # which MPI does not know
            buffer: list[Any] = [values.view(np.uint16), MPI.UINT16_T]
            request = comm.Iallreduce(MPI.IN_PLACE, buffer, op=_float16_op(collective.op))
        else:
            request = comm.Iallreduce(MPI.IN_PLACE, values, op=self._ops[collective.op])
        return _Handle(request, result)

    def done(self, handle: _Handle) -> bool:
        return False

    def wait(self, handle: _Handle) -> None:
        handle.request.Wait()

    def result(self, handle: _Handle) -> Array:
        return handle.result


def _nodes(comm: MPI.Intracomm) -> Topology:
    """Return which ranks share memory, by the lowest rank of each node; collective."""
    local = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.Get_rank())
    first = local.bcast(comm.Get_rank())
    local.Free()
    nodes: dict[int, list[int]] = {}
    for rank, lowest in enumerate(comm.allgather(first)):
        nodes.setdefault(lowest, []).append(rank)
    return Topology(tuple(tuple(node) for node in nodes.values()))


def _ranks(comm: MPI.Intracomm) -> tuple[int, ...] | None:
    """Return what ``Transport.mpi`` says of a communicator."""
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return None
    ranks = MPI.Group.Translate_ranks(comm.Get_group(), None, MPI.COMM_WORLD.Get_group())
    return None if MPI.UNDEFINED in ranks else tuple(ranks)


@functools.cache  # mpi4py has room for sixteen in a process
def _float16_op(name: str) -> MPI.Op:
    reductions: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}

    def combine(source: Any, target: Any, _: MPI.Datatype) -> None:
        out = np.frombuffer(target, np.float16)
        reductions[name](out, np.frombuffer(source, np.float16), out=out)

    return MPI.Op.Create(combine, commute=True)
