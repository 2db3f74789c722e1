"""Collectives through ``horovod.torch``: of NumPy arrays, and of tensors on a GPU.

A Horovod that was built with NCCL gets the payloads of all-gathers, and whatever is a tensor, as tensors on the GPU.
One that was not gets everything as tensors on the host, copied by way of pinned memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from hvd_compress.drivers.initialization import is_elastic
from hvd_compress.drivers.nodes import sets_of
from hvd_compress.drivers.torch.horovod_internals import await_end
from hvd_compress.drivers.torch.streams import DeviceStream
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
from hvd_compress.kernels.device_memory import memory_errors
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
    sent: torch.Tensor | None = None
    """What Horovod was given, kept until the result is taken: see ``streams``."""
    output: torch.Tensor | None = None


class DeviceRoute:
    """How what an exchange sends comes from a GPU to Horovod, and results back.

    Args:
        device: the GPU; the CPU under Triton's interpreter.
        stream: the library's.
    """

    def __init__(self, device: torch.device, stream: DeviceStream) -> None:
        from hvd_compress.kernels.device.launch import Launcher  # which needs Triton

        self.name = "nccl" if device.type == "cuda" and hvd.nccl_built() else "host"
        """``"nccl"``: as tensors on the GPU; ``"host"``: from pinned memory."""
        self._launcher = Launcher(device)
        self._stream = stream

    def sent(self, collective: Collective) -> torch.Tensor:
        """Return what Horovod gets. It is complete, or behind what is on this thread's stream if it is on the GPU.

        Raises:
            MemoryError: the device has no memory for it.
        """
        with memory_errors():
            return self._sent(collective)

    def received(self, collective: Collective, output: torch.Tensor) -> Any:
        """Return a result where the exchange expects it: where it was sent from. Raises as ``sent`` does."""
        with memory_errors():
            return self._received(collective, output)

    def _sent(self, collective: Collective) -> torch.Tensor:
        values: Any = sent_array(collective)
        if isinstance(values, torch.Tensor):
            return values if self.name == "nccl" else torch.from_numpy(self._launcher.download(values)[0])
        if self.name == "nccl" and isinstance(collective, AllGather):
            return self._launcher.upload(values)
        return torch.from_numpy(values)

    def _received(self, collective: Collective, output: torch.Tensor) -> Any:
        if output.device.type == "cuda":
            self._stream.after_horovod(output)
        if isinstance(sent_array(collective), torch.Tensor):
            return output if self.name == "nccl" else self._launcher.upload(output.numpy())
        return self._launcher.download(output)[0] if output.device.type == "cuda" else output.numpy()


class HorovodTransport:
    """What a worker sends is not copied on the host; names are Horovod's identity of a collective. ``route`` is for
    those with gradients on a GPU."""

    def __init__(self, process_set: Any, topology: Topology | None = None, route: DeviceRoute | None = None) -> None:
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
        self._route = route
        self._elastic = is_elastic()
        self._names: set[str] = set()
        """The names of all that has been started here."""
        self._ops = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}

    def start(self, collective: Collective, name: str) -> Handle:
        members = self.topology.members(collective.scope, self.rank)
        if self.topology.alone(collective.scope, self.rank):
            return _Started(collective, members, None)
        try:
            handle, sent = self._start(collective, name, members)
        except ValueError as error:
            if name in self._names or not self._elastic or "same name" not in str(error):
                raise
            # what was started just when Horovod ended, because a worker was lost, is still under way when it has been
            # initialized again (0.28.1), until it ends again: as it does after this error
            raise HorovodInternalError(f"{name} is left over from before the workers changed") from error
        self._names.add(name)
        return _Started(collective, members, handle, sent)

    def _start(self, collective: Collective, name: str, members: tuple[int, ...]) -> tuple[int, torch.Tensor]:
        process_set = self._sets[members]
        values = torch.from_numpy(sent_array(collective)) if self._route is None else self._route.sent(collective)
        if self._elastic:
            await_end()
        if isinstance(collective, AllGather):
            handle: int = hvd.allgather_async(values, name=name, process_set=process_set)
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
        return handle, values

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
        output: Any = handle.output
        received = output.numpy() if self._route is None else self._route.received(handle.collective, output)
        return shaped(handle.collective, received, len(handle.members))
