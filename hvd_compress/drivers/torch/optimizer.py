"""One ``hvd.DistributedOptimizer`` that a compressor serves: where its steps begin, and what becomes of them."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.initialization import initialization
from hvd_compress.drivers.joining import JoinRefused
from hvd_compress.drivers.nodes import agree
from hvd_compress.drivers.torch import devices, horovod_internals, ranges, tensors
from hvd_compress.drivers.torch.finite import FiniteCheck, if_finite, is_finite
from hvd_compress.drivers.torch.horovod_internals import GradientCall
from hvd_compress.drivers.torch.mean_momentum import TensorMomentum
from hvd_compress.drivers.torch.memory_unit import MemoryUnit
from hvd_compress.drivers.torch.plain_steps import Passed, PlainSteps
from hvd_compress.drivers.torch.streams import DeviceStream, OrderedExecutor
from hvd_compress.drivers.torch.transport import DeviceRoute, HorovodTransport, await_asleep
from hvd_compress.exchange import Array
from hvd_compress.kernels import UInt8
from hvd_compress.phased import phases
from hvd_compress.runtime.agreement import Agreement, Agreements
from hvd_compress.runtime.bucketing import Parameter, is_compressed
from hvd_compress.runtime.engine import Engine
from hvd_compress.topology import Topology

logger = logging.getLogger(__name__)


NONE = 0
"""The number of no initialization of Horovod."""


class Place(NamedTuple):
    """A gradient's context between compress and decompress; ``number`` is the engine's, None if Horovod reduces the
    gradient of ``parameter`` itself. ``frozen``: this rank has nothing for the parameter, which does not train. All
    gradients have one: whichever Horovod asks for first ends the step."""

    parameter: torch.Tensor
    number: int | None
    shape: torch.Size
    dtype: torch.dtype
    frozen: bool


def check_optimizer(compressor: Compressor, optimizer: Any) -> None:
    """Raise ValueError if the optimizer reduces in a way, or in a process set, that the compressor cannot."""
    if horovod_internals.adds_deltas(optimizer) or optimizer.op == hvd.Adasum:
        raise ValueError(
            "op=hvd.Adasum combines gradients in a way that needs them whole; use op=hvd.Average or hvd.Sum with "
            f"{type(compressor).__name__}"
        )
    if optimizer.op not in (hvd.Average, hvd.Sum):
        raise ValueError(f"op must be hvd.Average or hvd.Sum, got {optimizer.op}")
    if compressor.process_set not in (None, optimizer.process_set):
        raise ValueError(
            f"the compressor's process_set ({compressor.process_set}) is not the optimizer's "
            f"({optimizer.process_set}); leave it out, the optimizer's is found"
        )


def compressed_parameters(compressor: Compressor, optimizer: Any) -> list[Parameter]:
    """Return the parameters whose gradients are compressed, in the optimizer's order, as an engine knows them."""
    return [
        Parameter(horovod_internals.parameter_name(optimizer, p), p.numel(), p.element_size(), devices.place(p))
        for p in horovod_internals.parameters(optimizer)
        if is_compressed(p.shape, compressor.min_numel)
    ]


def agree_on_nodes(
    compressor: Compressor, optimizer: Any, label: str, agreements: Agreements
) -> tuple[Topology, Agreement | None]:
    """Return which ranks share a node, as far as the compressor asks (see ``drivers.nodes.agree``); and the agreement
    that has failed, if the ranks' compressors differ."""
    refused: list[Agreement] = []

    def check(payload: UInt8) -> None:
        transport = HorovodTransport(optimizer.process_set)
        refused.append(agreements.begin(transport, payload))
        for handle in refused[0].completing():
            transport.wait(handle)
        refused.clear()

    def gather(array: Array) -> Array:
        gathered: Array = hvd.allgather(torch.from_numpy(array), name=f"{label}.nodes").numpy()
        return gathered

    try:
        return agree(compressor, optimizer.process_set, hvd, check, gather), None
    except ValueError:
        return Topology.single(optimizer.process_set.size()), refused[0]


class ServedOptimizer:
    """Runs the steps of one optimizer on an engine. ``label`` and ``agreements`` are those of its process set."""

    def __init__(self, compressor: Compressor, optimizer: Any, label: str, agreements: Agreements) -> None:
        self.process_set = optimizer.process_set
        self.initialization = initialization()
        self._compressor = compressor
        self._optimizer = weakref.ref(optimizer)
        parameters = horovod_internals.parameters(optimizer)
        chosen = [p for p in parameters if is_compressed(p.shape, compressor.min_numel)]
        for parameter in chosen:
            tensors.check(parameter)
        device = devices.device_of(parameters)
        self._stream: DeviceStream | None = None
        self._route: DeviceRoute | None = None
        if device is not None:
            devices.check(device, compressor)
            self._stream = DeviceStream(device)
            self._route = DeviceRoute(device, self._stream)
            self._check = FiniteCheck()
            compressor.runtime.statistics.transport = self._route.name
        self._lock = threading.Lock()  # autograd has a thread for each device, and one for the CPU
        self._rescaling: Future[None] | None = None
        self._numbers: dict[torch.Tensor, int | None] = dict.fromkeys(parameters)
        self._numbers.update({parameter: number for number, parameter in enumerate(chosen)})
        self._names = {p: horovod_internals.parameter_name(optimizer, p) for p in parameters}
        self._doubles = [p for p in chosen if p.dtype == torch.float64]
        self._new_tokens(len(chosen))
        self._last: Any = None  # the key of the gradient that came last in this step
        self._synchronized = False  # a step has been finished, and not been applied
        self._warned = False
        self._refuses_join = False  # this rank was to join, and may not
        self._unread = False  # whether no token of this step has been looked at
        self._withheld: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        compressed = {parameter: self._names[parameter] for parameter in chosen}
        self.unit = MemoryUnit(compressor, self._optimizer, compressed, compressor.runtime.pending_state)
        name = "hvd_compress"
        self._worker = (
            ThreadPoolExecutor(1, thread_name_prefix=name)
            if self._stream is None
            else OrderedExecutor(self._stream, name)
        )
        self.parameters = compressed_parameters(compressor, optimizer)
        topology, refused = agree_on_nodes(compressor, optimizer, label, agreements)
        self.engine = Engine(
            compressor,
            HorovodTransport(optimizer.process_set, topology, self._route),
            self.parameters,
            label,
            len(parameters),
            [self._names[p] for p in parameters if p.dim() > 1],
            {self._names[p]: p.numel() for p in parameters if self._numbers[p] is None},
            self._worker,
            agreements,
            refused,
            {where: devices.kernels_at(where) for where in ("", *map(devices.place, parameters))},
        )
        self._momentum = TensorMomentum(self.engine, self._names, self._stream)
        self.plain = PlainSteps(compressor, self.engine, parameters)
        self._came_by = 0  # gradients in this step, or in the last
        self._handed: set[int] = set()  # which tensors are gradients of this step
        horovod_internals.before_synchronize(optimizer, self._before_synchronize)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @property
    def optimizer(self) -> Any:
        """The optimizer, or None when it is gone."""
        return self._optimizer()

    @property
    def passes_on(self) -> bool:
        """Whether the gradient that comes next is left to Horovod."""
        return self.plain.left > 0 and self.initialization == initialization() and self._optimizer() is not None

    def close(self) -> None:
        """End the service of this optimizer."""
        self._worker.shutdown(wait=False)

    def enter_world(self, label: str, agreements: Agreements) -> None:
        """Go on after Horovod was initialized again, as ``Engine.enter_world`` does."""
        self.initialization = initialization()
        self._synchronized = False
        self._withheld.clear()
        self._new_tokens(len(self._tokens))  # nobody knows what Horovod still does to the old ones
        topology, refused = agree_on_nodes(self._compressor, self.optimizer, label, agreements)
        transport = HorovodTransport(self.process_set, topology, self._route)
        with self._ordered():
            self.engine.enter_world(transport, label, agreements, refused)

    def refuse_join(self) -> bool:
        """Return whether this rank may not join; then all ranks raise ``JoinRefused`` in the step that begins next.

        This rank takes part in that step with gradients that are not finite, so that it changes nothing on any rank,
        and with infinite tokens, which say why. It raises alone where the others' collectives may be of other names:
        in a step that has begun here, with groups or sparse gradients, and where Horovod may reduce gradients itself.
        """
        optimizer = self.optimizer
        if not self._tokens:
            return False
        gradients = {parameter: parameter.grad for parameter in self._numbers}
        begun = self.engine.busy or horovod_internals.pending(optimizer, self._last)
        sparse = any(gradient is not None and gradient.is_sparse for gradient in gradients.values())
        if begun or sparse or horovod_internals.grouped(optimizer) or phases(self._compressor).may_be_plain:
            return True
        self._refuses_join = True
        try:
            for parameter in gradients:
                parameter.grad = torch.full_like(parameter, torch.nan)
            with suppress(JoinRefused, HorovodInternalError):  # the latter if the others have ended
                optimizer.synchronize()
        finally:
            self._refuses_join = self._synchronized = False
            horovod_internals.end_step(optimizer)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
        return True

    def compress(self, tensor: torch.Tensor, call: GradientCall) -> tuple[torch.Tensor, Place | Passed]:
        """Take a gradient; see ``Compressor.compress``."""
        with self._lock:
            return self._compress(tensor, call)

    def _compress(self, tensor: torch.Tensor, call: GradientCall) -> tuple[torch.Tensor, Place | Passed]:
        if not self.engine.busy:
            came_by, self._came_by = self._came_by, 0
            plain = self.plain.begin(came_by)
            self._begin()
            if plain:
                self._came_by = came_by
                return self.plain.take(tensor)
        elif call.first and not horovod_internals.pending(call.optimizer, self._last):
            self._abandon()
            self._begin()
        self._last = call.key
        self._came_by += 1
        parameter = call.parameter
        number = self._numbers[parameter]
        frozen = not parameter.requires_grad and not bool(tensor.any())
        place = Place(parameter, number, tensor.shape, tensor.dtype, frozen)
        if number is None:
            self._add_uncompressed(tensor)
            if self.engine.momentum is not None:
                tensor = tensors.with_mark(tensor, not frozen)
            taken, _ = tensors.as_horovod_takes_it(tensor)
            return taken, place
        if tensor.layout != torch.strided:
            tensors.check(tensor)
        if tensor is parameter.grad:
            if id(tensor) in self._handed:  # another parameter's gradient as well, and each is to get its own mean
                parameter.grad = tensor.detach()
            self._handed.add(id(tensor))
        if frozen and not self._refuses_join:
            self._ones[number] = 0
        if self._stream is None or not devices.place(tensor):
            self.engine.add(number, tensors.flat(tensor), frozen=frozen)
            return self._tokens[number], place
        gradient = tensors.piece(tensor)  # on the stream that the tensor is complete on
        self._stream.take(gradient)
        with self._stream.allocating():
            self.engine.add(number, gradient, frozen=frozen)
        where = tensors.token_device(tensor, grouped=isinstance(call.key, tuple))
        token = (
            self._tokens[number] if where.type == "cpu" else torch.full((1,), float(self._ones[number]), device=where)
        )
        return token, place

    def _add_uncompressed(self, tensor: torch.Tensor) -> None:
        """Note a gradient that Horovod reduces itself. Where it is on a device, whether it is finite is found out
        there, and asked for when all have come: to ask at once would be to wait for the backward pass."""
        nbytes = tensor.numel() * tensor.element_size()
        if self._stream is None or not devices.place(tensor):
            self.engine.add_uncompressed(nbytes, is_finite(tensor))
            return
        self._check.add(tensor)
        self._stream.note()
        with self._stream.allocating():
            self.engine.add_uncompressed(nbytes, self._check)

    def decompress(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """Return what the step made of a gradient; all are in when Horovod asks for the first."""
        engine = self.engine
        device = place.parameter.device
        if engine.busy:
            with self._ending():
                self._finish()
        if place.number is not None and self._unread:  # all tokens of a step say the same of joining
            self._unread = False
            if not bool(tensor.isfinite()):
                self._synchronized = False
                horovod_internals.end_step(self.optimizer)
                raise JoinRefused(self._compressor)
        if place.number is None:
            return self._uncompressed(tensor, place).to(device, place.dtype)
        rests = place.frozen and not bool(tensor)  # frozen on every rank: no token was 1
        if rests:
            with self._ordered():
                engine.rest(place.number)
        mean = tensors.of_array(engine.means[place.number], device)
        if not rests:
            self._momentum.add_decay(mean, place.parameter, self.unit.loss_scale, self._factor())
        return mean.view(place.shape).to(place.dtype)

    def _uncompressed(self, reduced: torch.Tensor, place: Place) -> torch.Tensor:
        """Return what the step makes of a gradient that Horovod has reduced."""
        engine, rests = self.engine, False
        if engine.momentum is not None:
            reduced, marked = tensors.without_mark(reduced, place.shape)
            rests = place.frozen and not marked  # with its momentum, which waits like a memory
        if self._compressor.nonfinite == "zero" and engine.skipped:
            return torch.zeros_like(reduced)
        if self._compressor.nonfinite == "zero" and not engine.told:
            if engine.momentum is None:
                return if_finite(reduced)
            if not is_finite(reduced):  # it must not come into the momentum
                return torch.zeros_like(reduced)
        if rests:
            return reduced
        return self._momentum.of_mean(reduced, place.parameter, self.unit.loss_scale, self._factor())

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End Horovod's part of the step after an error inside of ``with``, too: else it would complain of that part
        in the next step, which is to say why it cannot go on."""
        try:
            yield
        except HorovodInternalError:  # a worker is lost, and with it what Horovod has under way
            raise
        except Exception:
            with suppress(HorovodInternalError):
                horovod_internals.end_step(self.optimizer)
            raise

    def _finish(self) -> None:
        """Finish the step, and have its means ready for what this thread's stream does next."""
        engine, rescaling, self._rescaling = self.engine, self._rescaling, None
        if rescaling is not None:
            rescaling.result()
        with self._ordered():
            engine.finish()
            self._synchronized = True
            if self._doubles and (engine.skipped or not engine.told):
                # until Horovod has the means, the gradients are those of this rank
                ranges.tell_of_float32({self._names[p]: p.grad for p in self._doubles if p.grad is not None})
            if (factor := self._factor()) != 1:
                for buffer in engine.buffers:
                    buffer *= factor
        if self._stream is not None:
            buffers: list[Any] = engine.buffers
            self._stream.hand_back(buffer for buffer in buffers if isinstance(buffer, torch.Tensor))

    def _ordered(self) -> AbstractContextManager[None]:
        """Work on a device's memories and means inside of ``with``, if there are any."""
        return nullcontext() if self._stream is None else self._stream.working()

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state, in the unit of gradients that will come next."""
        if self.initialization != initialization():
            self.engine.drop()  # nobody will end that step any more
        self.plain.count()
        with self._ordered():
            if not self.engine.busy:
                self.unit.follow(self.engine)
            return {**self.engine.state_dict(), **self.unit.state()}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to a state that ``state_dict`` returned; the next step begins as after a change of the workers."""
        with self._ordered():
            self.engine.restore(state)
        self.unit.load(state)
        self.initialization = NONE

    def _factor(self) -> np.float32:
        """Return what the optimizer gets for a mean of 1: with ``op=hvd.Sum``, the number of workers."""
        optimizer = self.optimizer
        sums = optimizer is not None and optimizer.op == hvd.Sum
        return np.float32(self.process_set.size() if sums else 1)

    def _begin(self) -> None:
        """Begin a step, whose first gradient is there."""
        remembered = self._compressor.error_feedback and not (self.engine.skipped or self.engine.discarded)
        if self._synchronized and remembered and not self._warned:
            self._warned = True
            logger.warning(
                "a step was synchronized, but optimizer.step() was not called: what it sent is lost, and what it held "
                "back will come in later steps. Call compression.discard() before the backward pass of a step that "
                "is to leave no trace"
            )
        self._synchronized = self.plain.unapplied = False
        self._withheld.clear()
        self._handed.clear()
        if self._stream is not None:
            self._check.forget()
        self._unread = True
        self._ones[:] = np.inf if self._refuses_join else 1  # Horovod reduces tokens in place
        if self._stream is None or not self.engine.fused or not self.unit.asks:
            with self._ordered():
                self.unit.follow(self.engine)
        else:  # a loss scale is on the device, and nobody may wait for it here; the worker does this first
            self._rescaling = self._worker.submit(self.unit.follow, self.engine)

    def _abandon(self) -> None:
        """Give the last step up: its handles are gone from the optimizer, and gradients come anew."""
        with self._ordered():
            self.engine.abandon()
        self._came_by = 0
        self._new_tokens(len(self._tokens))  # Horovod may be reducing the old ones still

    def _new_tokens(self, count: int) -> None:
        self._ones = np.ones(count, np.float32)
        self._tokens = [torch.from_numpy(self._ones[i : i + 1]) for i in range(count)]

    def _before_synchronize(self) -> None:
        """Do, asleep, what Horovod's ``synchronize`` does without a pause, in an order in which all ranks come to an
        end.

        1. Hand over the gradients that are missing on this rank.
        2. Finish the exchanges. A rank that has given this step up waits for them when it begins its next.
        3. Wait for Horovod's collectives. What such a rank has not handed over comes in that next step of its own.
        """
        optimizer = self.optimizer
        horovod_internals.hand_over(optimizer)
        if self.engine.busy:
            with self._ending():
                self._finish()
            for handle, _ctx in horovod_internals.handles(optimizer).values():
                if not callable(handle):  # sparse gradients: a function that waits
                    await_asleep(handle)

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        """After a step that was not finite, withhold the gradients, so that nothing moves: no weight, no momentum.

        Called twice: before Horovod synchronizes, if it has not, and when the gradients are about to be applied."""
        if self.engine.busy or horovod_internals.handles(optimizer):
            return
        self.unit.notice_scaler()
        if (self._synchronized or self.plain.unapplied) and not horovod_internals.synchronized(optimizer):
            plain, self.plain.unapplied, self._synchronized = self.plain.unapplied, False, False
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if self._compressor.nonfinite != "nan" and self._not_finite(parameters, plain):
                for parameter in parameters:
                    self._withheld.append((parameter, parameter.grad))
                    parameter.grad = None
            elif self._compressor.nonfinite == "zero" and self.engine.skipped and not plain:
                for parameter in parameters:
                    if parameter.grad is not None and parameter.grad.is_sparse:
                        parameter.grad.zero_()  # as all others are: Horovod gathers these by itself

    def _not_finite(self, parameters: list[torch.Tensor], plain: bool) -> bool:
        """Return whether the step, a ``plain`` one or not, is to be skipped, alike on all ranks.

        Where the workers do not tell each other (compressors that only sum, and sparse gradients, which Horovod
        gathers), the result does: it is the same everywhere. So does a mean that is beyond float16, the parameter's
        type, with what was held back.
        """
        if self.engine.skipped and not plain:
            return self._compressor.nonfinite == "skip"
        told = self.engine.told and not plain
        seen = [
            p.grad
            for p in parameters
            if p.grad is not None and (p.grad.is_sparse or not told or p.grad.dtype == torch.float16)
        ]
        if self.plain.finite(seen):
            return False
        if told:
            ranges.tell_of_float16({name: p.grad for p, name in self._names.items() if p.grad is not None})
        self._compressor.runtime.statistics.total.skipped_steps += 1
        return True

    def _after_step(self, *_: Any) -> None:
        """Give the withheld gradients back: whoever looks at them after the step sees what they are."""
        self.plain.count()
        for parameter, gradient in self._withheld:
            parameter.grad = gradient
        self._withheld.clear()
