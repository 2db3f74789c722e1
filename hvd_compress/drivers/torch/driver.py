"""Horovod under PyTorch: matches gradients to parameters, and runs their exchanges as Horovod's own collectives."""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import horovod.torch as hvd
import numpy as np
import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.torch.transport import HorovodTransport, await_asleep
from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32
from hvd_compress.kernels import get as get_kernels
from hvd_compress.memory import Memory
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.engine import Engine
from hvd_compress.runtime.exchange_run import ExchangeRun

# Horovod's names are one space for the whole process, so must their numbering be; but a process set's ranks number
# together, and apart from the ranks that are not in it.
_labels: defaultdict[int, itertools.count[int]] = defaultdict(itertools.count)

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class _Place(NamedTuple):
    """A gradient's context between compress and decompress."""

    number: int
    shape: torch.Size
    dtype: torch.dtype


class _Alone(NamedTuple):
    """The context of a tensor compressed outside an optimizer."""

    slot: int
    flight: ExchangeRun
    transport: HorovodTransport
    shape: torch.Size
    dtype: torch.dtype


class TorchDriver:
    """Runs one compressor for one ``hvd.DistributedOptimizer`` (and for ``hvd.allreduce`` beside it)."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._optimizer: weakref.ref[Any] | None = None
        self._engine: Engine | None = None
        self._parameters: list[torch.nn.Parameter] = []
        self._compressed: list[bool] = []
        self._numbers: dict[int, int] = {}
        self._ones = np.ones(0, np.float32)
        self._tokens: list[torch.Tensor] = []  # views of it
        self._arrived: dict[int, tuple[torch.Tensor, int]] = {}
        self._sparse: int | None = None
        self._alone: set[int] = set()
        self._calls = 0
        self._label = ""

    def compress(self, tensor: Any) -> tuple[torch.Tensor, _Place | _Alone | torch.dtype | None]:
        """Horovod's hook: a parameter's gradient has arrived, or ``hvd.allreduce`` was given a tensor."""
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{self._compressor!r} already serves PyTorch; make another compressor for other work")
        arrived = self._arrived.pop(id(tensor), None)
        index = arrived[1] if arrived is not None else self._find(tensor)
        if index is None:
            return self._compress_alone(tensor)
        assert self._engine is not None
        if not self._engine.busy:
            self._ones[:] = 1  # Horovod reduces tokens in place
        if not self._compressed[index]:
            finite = not tensor.is_floating_point() or math.isfinite(float(tensor.sum(dtype=torch.float64)))
            self._engine.add_uncompressed(tensor.numel() * tensor.element_size(), finite)
            return _uncompressed(tensor)
        number = self._numbers[index]
        self._engine.add(number, _flat(tensor))
        return self._tokens[number], _Place(number, tensor.shape, tensor.dtype)

    def decompress(self, tensor: torch.Tensor, ctx: _Place | _Alone | torch.dtype) -> torch.Tensor:
        """Horovod's second hook; ``tensor`` is the reduced token."""
        if isinstance(ctx, torch.dtype):
            return tensor.to(ctx)
        if isinstance(ctx, _Alone):
            return self._decompress_alone(tensor, ctx)
        assert self._engine is not None
        if self._engine.busy:
            self._engine.finish()
            _scale(self._engine.buffers, tensor)
            self._arrived.clear()
        mean = self._engine.means[ctx.number]
        return torch.from_numpy(mean).view(ctx.shape).to(ctx.dtype)

    def bind(self, optimizer: Any) -> None:
        """Serve this optimizer; see ``Compressor.bind``."""
        current = self._optimizer() if self._optimizer is not None else None
        if current is optimizer:
            return
        if current is not None:
            raise ValueError(
                f"{self._compressor!r} already serves another optimizer, and its memory belongs to that one's "
                "gradients; make one compressor for each optimizer"
            )
        if getattr(optimizer, "_compression", None) is not self._compressor:
            raise TypeError(
                "bind takes the optimizer that hvd.DistributedOptimizer(..., compression=this compressor) returned, "
                f"got {type(optimizer).__name__}"
            )
        if hasattr(optimizer, "_starting_models") or optimizer.op == hvd.Adasum:
            raise ValueError(
                "op=hvd.Adasum combines gradients in a way that needs them whole; use op=hvd.Average or hvd.Sum with "
                f"{type(self._compressor).__name__}"
            )
        if optimizer.op not in (hvd.Average, hvd.Sum):
            raise ValueError(f"op must be hvd.Average or hvd.Sum, got {optimizer.op}")
        if self._compressor.process_set not in (None, optimizer.process_set):
            raise ValueError(
                f"the compressor's process_set ({self._compressor.process_set}) is not the optimizer's "
                f"({optimizer.process_set}); leave it out, the optimizer's is found"
            )
        self._optimizer = weakref.ref(optimizer)
        self._parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p in optimizer._requires_update
        ]
        self._compressed = [self._eligible(p) for p in self._parameters]
        chosen = [i for i, compressed in enumerate(self._compressed) if compressed]
        self._numbers = {index: number for number, index in enumerate(chosen)}
        self._ones = np.ones(len(chosen), np.float32)
        self._tokens = [torch.from_numpy(self._ones[i : i + 1]) for i in range(len(chosen))]
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(_Note(weakref.ref(self), index))  # type: ignore[no-untyped-call]
        optimizer.register_step_pre_hook(_await_gradients)
        self._engine = Engine(
            self._compressor,
            HorovodTransport(optimizer.process_set),
            [self._described(optimizer, self._parameters[i]) for i in chosen],
            self._new_label(optimizer.process_set),
            len(self._parameters),
            [optimizer._parameter_names[p] for p in self._parameters if p.dim() > 1],
            ThreadPoolExecutor(1, thread_name_prefix="hvd_compress"),
        )

    def state_dict(self) -> dict[str, Any]:
        """The engine's state with torch tensors for arrays, so that ``torch.load`` needs no unpickling of NumPy."""
        if self._engine is None:
            return {}
        state = self._engine.state_dict()
        state["memory"] = {
            name: {key: torch.from_numpy(array) for key, array in arrays.items()}
            for name, arrays in state["memory"].items()
        }
        return state

    def note(self, index: int, parameter: torch.Tensor) -> None:
        """A parameter's gradient has been accumulated; Horovod's hook for it follows."""
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:  # Horovod passes a dense copy, which has no identity
            self._sparse = index
        elif gradient is not None:
            self._arrived[id(gradient)] = (gradient, index)

    def _find(self, tensor: torch.Tensor) -> int | None:
        """The parameter whose gradient no hook announced: the very first one, one that is missing on this rank (and
        that Horovod filled with zeros), or a sparse one that Horovod made dense. None outside an optimizer."""
        optimizer = _calling_optimizer(self._compressor)
        if optimizer is None:
            return None
        self.bind(optimizer)
        if self._sparse is not None and self._parameters[self._sparse].shape == tensor.shape:
            index, self._sparse = self._sparse, None
            return index
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is tensor:
                return index
        raise RuntimeError(
            f"Horovod handed over a tensor of shape {tuple(tensor.shape)} that is no parameter's gradient; was p.grad "
            "replaced between backward and synchronize?"
        )

    @staticmethod
    def _described(optimizer: Any, parameter: torch.Tensor) -> Parameter:
        return Parameter(optimizer._parameter_names[parameter], parameter.numel(), parameter.element_size())

    def _eligible(self, parameter: torch.Tensor) -> bool:
        if parameter.dim() < 2 or parameter.numel() < self._compressor.min_numel:
            return False
        _check(parameter)
        return True

    def _new_label(self, process_set: Any) -> str:
        number = process_set.process_set_id
        self._label = self._label or f"hvd_compress.set{number}.{next(_labels[number])}"
        return self._label

    def _compress_alone(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Alone | torch.dtype | None]:
        if tensor.numel() < self._compressor.min_numel:
            return _uncompressed(tensor)
        _check(tensor)
        op = _calling_op()
        if op not in (None, hvd.Average, hvd.Sum):
            raise ValueError(f"op must be hvd.Average or hvd.Sum with {type(self._compressor).__name__}, got {op}")
        slot = next(number for number in itertools.count() if number not in self._alone)
        self._alone.add(slot)
        kernels = get_kernels()
        process_set = self._compressor.process_set or hvd.global_process_set
        transport = HorovodTransport(process_set)
        bucket = Bucket(
            name=f"alone{slot}",
            size=tensor.numel(),
            memory=Memory(kernels, tensor.numel()),
            kernels=kernels,
            rank=transport.rank,
            workers=transport.workers,
            seed=self._compressor.seed,
        )
        bucket.step = self._calls  # random numbers differ from call to call
        self._calls += 1
        bucket.memory.begin([_flat(tensor)])
        flight = ExchangeRun(self._compressor, bucket, self._new_label(process_set))
        flight.launch(transport)
        return torch.ones(1), _Alone(slot, flight, transport, tensor.shape, tensor.dtype)

    def _decompress_alone(self, token: torch.Tensor, ctx: _Alone) -> torch.Tensor:
        flight = ctx.flight
        flight.complete(ctx.transport)
        self._alone.discard(ctx.slot)
        _scale([flight.mean], token)
        return torch.from_numpy(flight.mean).view(ctx.shape).to(ctx.dtype)


class _Note:
    """A parameter's post-accumulate-grad hook; it keeps neither driver nor compressor alive."""

    def __init__(self, driver: weakref.ref[TorchDriver], index: int) -> None:
        self._driver = driver
        self._index = index

    def __call__(self, parameter: torch.Tensor) -> None:
        driver = self._driver()
        if driver is not None:
            driver.note(self._index, parameter)


def _await_gradients(optimizer: Any, *_: Any) -> None:
    """Before a step: sleep until Horovod's collectives are done, so that its ``synchronize`` finds them so. Where
    gradients are missing on this rank ``synchronize`` hands them over first, and does the waiting."""
    handed: set[torch.Tensor] = set()
    for key, (handle, _ctx) in optimizer._handles.items():
        if handle is None:
            return
        handed.update(key if isinstance(key, tuple) else (key,))
    if optimizer._requires_update <= handed:
        for handle, _ctx in optimizer._handles.values():
            if not callable(handle):  # sparse gradients: a function that waits
                await_asleep(handle)


def _flat(tensor: torch.Tensor) -> Float32:
    """The gradient as a flat float32 array: the tensor's own memory where it is contiguous float32."""
    tensor = tensor.detach()
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        tensor = tensor.to(torch.float32).contiguous()
    flat: Float32 = tensor.numpy().reshape(-1)
    return flat


def _uncompressed(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype | None]:
    """What Horovod gets of a tensor that is left to it: it cannot reduce bfloat16 under PyTorch."""
    return (tensor.float(), tensor.dtype) if tensor.dtype == torch.bfloat16 else (tensor, None)


def _check(tensor: torch.Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise TypeError(f"tensors of {tensor.dtype} cannot be compressed; leave them to Horovod without compression")
    if tensor.device.type != "cpu":
        raise NotImplementedError(
            f"the tensor is on {tensor.device}: this version compresses gradients on the CPU only; train on the CPU, "
            "or without compression"
        )


def _scale(buffers: list[Float32], token: torch.Tensor) -> None:
    """Multiply the means by what the reduced token says: 1 for op=Average, N for op=Sum (rounding noise removed)."""
    factor = float(token[0])
    if abs(factor - round(factor)) < 1e-4 * abs(factor):
        factor = round(factor)
    if factor != 1:
        for buffer in buffers:
            buffer *= np.float32(factor)


def _calling_optimizer(compressor: Compressor) -> Any:
    """The optimizer that is calling ``compressor.compress``: a caller's ``self`` whose ``_compression`` it is."""
    frame = sys._getframe(2)
    for _ in range(8):
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.optim.Optimizer) and getattr(owner, "_compression", None) is compressor:
            return owner
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _calling_op() -> Any:
    """The ``op`` of the Horovod function that is calling ``compress``."""
    frame = sys._getframe(2)
    for _ in range(6):
        if frame.f_globals.get("__name__") == "horovod.torch.mpi_ops" and "op" in frame.f_locals:
            return frame.f_locals["op"]
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None
