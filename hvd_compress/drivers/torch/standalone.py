"""Tensors outside an optimizer: ``hvd.allreduce`` and ``hvd.grouped_allreduce``, with all that these promise.

Horovod calls ``compress`` for every tensor of a call, reduces the tokens, and calls ``decompress`` for each. The token
of a call's first tensor carries what the workers must agree on, so that Horovod's own checks (name, op, factors,
process set) and ours (shapes, dtypes, compressor) are over on every rank before anything of a tensor is sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import horovod.torch as hvd
import numpy as np
import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.torch import devices, horovod_internals, tensors
from hvd_compress.drivers.torch.horovod_internals import FunctionCall
from hvd_compress.drivers.torch.streams import DeviceStream
from hvd_compress.drivers.torch.tensors import Original
from hvd_compress.drivers.torch.transport import DeviceRoute, HorovodTransport
from hvd_compress.exchange import Bucket
from hvd_compress.memory import Memory
from hvd_compress.runtime.agreement import MARKS, NAMELESS, device_mark, disagreement, identity, marks_of
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.validation import warn_of_range

HONOURED = ("allreduce", "grouped_allreduce")
_LABEL = "hvd_compress.allreduce"
"""Begins the names of all collectives; then comes the user's name."""
_CALL = "hvd_compress call"
"""Where a call is kept among the local variables of Horovod's function, and ends with them."""


class Reduction(NamedTuple):
    """What a call asks Horovod for."""

    op: Any
    prescale: float
    postscale: float
    process_set: Any

    def factor(self) -> float:
        """Return what the workers' mean must be multiplied by."""
        workers: int = self.process_set.size() if self.op == hvd.Sum else 1
        return float(self.prescale) * float(self.postscale) * workers


class Member(NamedTuple):
    """A tensor's context between compress and decompress."""

    call: Call
    position: int


class Call:
    """One call of a function of Horovod's, and those of its tensors that are compressed."""

    def __init__(self, name: str | None, reduction: Reduction, device: torch.device) -> None:
        self.name = name
        self.shown = name or NAMELESS
        self.reduction = reduction
        self.tensors: list[torch.Tensor] = []
        self.error: Exception | None = None
        """Why one of them cannot be compressed on this rank: raised when the others know that something is wrong."""
        self.token = torch.ones(2 + MARKS, device=device)
        self.results: Sequence[torch.Tensor] = ()


class Standalone:
    """Runs the exchanges of one compressor that are no optimizer's; they have no memory."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._calls = itertools.count()

    @cached_property
    def _identity(self) -> str:
        """What ranks compare of their compressors; a schedule of the user's own is asked many times for it."""
        return identity(self._compressor)

    def compress(self, tensor: torch.Tensor, called: FunctionCall) -> tuple[torch.Tensor, Member | Original | None]:
        """Take a tensor of a call; nothing is sent yet. What is wrong with a tensor is said in ``decompress``, for
        the other ranks, whose tensors may be right, wait for this one.

        Raises:
            NotImplementedError, ValueError: the call asks for what cannot be done with compression.
        """
        if tensor.numel() < self._compressor.min_numel:
            return tensors.as_horovod_takes_it(tensor)
        call = called.variables.get(_CALL)
        if call is None:
            device = tensors.token_device(tensor, grouped=called.function.startswith("grouped"))
            call = called.variables[_CALL] = self._begin(called, device)
        try:
            self._check(call, tensor)
        except Exception as error:
            call.error = call.error or error
        position = len(call.tensors)
        call.tensors.append(tensor)
        self._mark(call)
        return (torch.ones(1, device=call.token.device) if position else call.token), Member(call, position)

    def decompress(self, token: torch.Tensor, member: Member) -> torch.Tensor:
        """Return what Horovod would have; the call's first token has what all workers said in it.

        Raises:
            NotImplementedError, TypeError, ValueError: a tensor cannot be compressed, or the ranks' calls differ.
        """
        call = member.call
        if member.position == 0:
            call.results = self._reduced(call, self._agree(call, token))
        return call.results[member.position]

    def _begin(self, called: FunctionCall, device: torch.device) -> Call:
        name = type(self._compressor).__name__
        if called.function not in HONOURED:
            raise NotImplementedError(
                f"hvd.{called.function} cannot be compressed with {name}; leave out compression=, or use hvd.allreduce"
            )
        known = called.variables
        op = horovod_internals.reduction(known["op"], known["average"])
        if op not in (hvd.Average, hvd.Sum):
            raise ValueError(f"op must be hvd.Average or hvd.Sum with {name}, got {op}")
        process_set = known["process_set"]
        if self._compressor.process_set not in (None, process_set):
            raise ValueError(
                f"the compressor's process_set ({self._compressor.process_set}) is not the one given to "
                f"hvd.{called.function} ({process_set}); leave it out of the compressor"
            )
        reduction = Reduction(op, known["prescale_factor"], known["postscale_factor"], process_set)
        call = Call(known["name"], reduction, device)
        call.token[1] = next(self._calls) % 2**20
        return call

    def _check(self, call: Call, tensor: torch.Tensor) -> None:
        tensors.check(tensor)
        if devices.place(tensor):
            devices.check(tensor.device, self._compressor)
            DeviceStream(tensor.device).refuse_capture()
        if tensors.beyond_float32(tensor):
            warn_of_range([call.shown])

    def _mark(self, call: Call) -> None:
        """Write into the token a checksum of what must be the same on every rank."""
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in call.tensors]
        places = dict.fromkeys(devices.place(tensor) for tensor in call.tensors if call.error is None)
        marks = "".join(device_mark(self._compressor, devices.kernels_at(where)) for where in places)
        text = f"{call.error} {shapes} {self._identity}{marks}"
        call.token[2:] = torch.tensor(marks_of(text), device=call.token.device)

    def _agree(self, call: Call, token: torch.Tensor) -> int:
        """Return the mean of the ranks' counts of calls (threads may have counted differently), the same on all.

        Raises:
            ValueError: the ranks' tensors or compressors differ; every rank sees the same bits, and raises.
        """
        if call.error is not None:
            raise call.error
        factor = call.reduction.factor()
        if factor == 0 or not math.isfinite(factor):
            return 0  # whatever is sent comes to nothing, or to NaN
        said = token.detach().cpu().double() / factor
        bits, tolerance = said[2:], 0.25 / call.reduction.process_set.size()
        if not bool(((bits - bits.round()).abs() < tolerance).all()):
            shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in call.tensors)
            raise ValueError(disagreement(call.shown, shapes, self._compressor))
        return round(float(said[1]))

    def _reduced(self, call: Call, step: int) -> Sequence[torch.Tensor]:
        device = devices.device_of(call.tensors)
        route = None if device is None else DeviceRoute(device, DeviceStream(device))
        transport = HorovodTransport(call.reduction.process_set, route=route)
        name = f"noname.{step}" if call.name is None else call.name
        buckets = (
            self._bucket(f"{name}.{position}", tensor, step, transport) for position, tensor in enumerate(call.tensors)
        )
        runs = [ExchangeRun(self._compressor, bucket, _LABEL, clips=False) for bucket in buckets]
        for run in runs:
            run.launch(transport)
        for run in runs:
            run.complete(transport)
        factor = np.float32(call.reduction.factor())
        means = []
        for run, tensor in zip(runs, call.tensors, strict=True):
            if factor != 1:
                run.mean *= factor
            means.append(tensors.of_array(run.mean, tensor.device).view(tensor.shape).to(tensor.dtype))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            apply: Callable[..., Sequence[torch.Tensor]] = _Reduced.apply
            return apply(call.reduction, name, means, *call.tensors)
        return means

    def _bucket(self, name: str, tensor: torch.Tensor, step: int, transport: HorovodTransport) -> Bucket:
        where = devices.place(tensor)
        kernels = devices.kernels_at(where)
        bucket = Bucket(
            name=name,
            size=tensor.numel(),
            memory=Memory(kernels, tensor.numel()),
            kernels=kernels,
            rank=transport.rank,
            workers=transport.workers,
            seed=self._compressor.seed,
            step=step,  # random numbers differ from call to call
        )
        bucket.memory.begin([tensors.piece(tensor) if where else tensors.flat(tensor)])
        return bucket


class _Reduced(torch.autograd.Function):
    """The means as a function of this rank's tensors. As in Horovod, what flows back is reduced in the same way, and
    like every gradient of a reduction uncompressed."""

    @staticmethod
    def forward(
        ctx: Any, reduction: Reduction, name: str, means: list[torch.Tensor], *_: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.reduction = reduction
        ctx.name = name
        return tuple(means)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        taken = [tensors.as_horovod_takes_it(gradient.contiguous()) for gradient in gradients]
        reduced = hvd.grouped_allreduce(
            [tensor for tensor, _ in taken],
            name=f"{_LABEL}.{ctx.name}.gradient",
            op=ctx.reduction.op,
            prescale_factor=ctx.reduction.prescale,
            postscale_factor=ctx.reduction.postscale,
            process_set=ctx.reduction.process_set,
        )
        back = (
            tensor if original is None else original.of(tensor)
            for tensor, (_, original) in zip(reduced, taken, strict=True)
        )
        return (None, None, None, *back)
