"""Horovod under PyTorch: tells what an optimizer hands over from what a function does, and who serves which."""

from __future__ import annotations

import gc
from typing import Any

import horovod.torch as hvd
import torch

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.initialization import check_elastic, guard_initialization, initialization, is_elastic
from hvd_compress.drivers.joining import guard_join
from hvd_compress.drivers.torch import horovod_internals
from hvd_compress.drivers.torch.handover import moved
from hvd_compress.drivers.torch.horovod_internals import GradientCall
from hvd_compress.drivers.torch.memory_unit import MemoryUnit
from hvd_compress.drivers.torch.optimizer import Place, ServedOptimizer, check_optimizer, compressed_parameters
from hvd_compress.drivers.torch.plain_steps import Passed
from hvd_compress.drivers.torch.standalone import Member, Standalone
from hvd_compress.drivers.torch.tensors import Original
from hvd_compress.runtime.agreement import Agreements

# Horovod's names are one space for the whole process, so must the agreements be that number them; but the ranks of a
# process set number together, apart from the ranks that are not in it, and anew when Horovod is initialized again:
# these are by initialization and process set, of the last initialization alone.
_agreements: dict[tuple[int, int], Agreements] = {}


def _label_and_agreements(process_set: Any) -> tuple[str, Agreements]:
    """Return what begins the names of a process set's collectives, and the agreements of its ranks in this
    initialization of Horovod."""
    now, number = initialization(), process_set.process_set_id
    for key in [key for key in _agreements if key[0] != now]:
        del _agreements[key]
    label = f"hvd_compress.set{number}"
    return label, _agreements.setdefault((now, number), Agreements(label))


def _refuse_join(compressor: Compressor) -> bool:
    """Return whether a rank may not join; all ranks are told in the next step of the optimizer that is served."""
    driver = compressor.runtime.driver
    return driver.refuse_join() if isinstance(driver, TorchDriver) else True


class TorchDriver:
    """Runs one compressor for one ``hvd.DistributedOptimizer`` (and for ``hvd.allreduce`` beside it)."""

    def __init__(self, compressor: Compressor) -> None:
        horovod_internals.check_version()
        guard_join(hvd, compressor, _refuse_join)
        check_elastic(compressor)
        guard_initialization()
        self._compressor = compressor
        self._standalone = Standalone(compressor)
        self._served: ServedOptimizer | None = None
        self._elastic = is_elastic()

    def compress(self, tensor: Any) -> tuple[torch.Tensor, Place | Passed | Member | Original | None]:
        """Take a parameter's gradient, or a tensor given to ``hvd.allreduce``: Horovod's first hook."""
        served = self._served
        if served is not None and served.passes_on and horovod_internals.optimizer_calling() is served.optimizer:
            return served.plain.take(tensor)
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{self._compressor!r} already serves PyTorch; make another compressor for other work")
        horovod_internals.hold_tensors()
        call = horovod_internals.caller()
        if not isinstance(call, GradientCall):
            return self._standalone.compress(tensor, call)
        try:
            handed = self._serving(call.optimizer).compress(tensor, call)
        except Exception:
            if not (
                horovod_internals.adds_deltas(call.optimizer) or horovod_internals.pending(call.optimizer, call.key)
            ):
                horovod_internals.end_step(call.optimizer)  # which has not begun: another attempt says the same
            raise
        if self._elastic:
            horovod_internals.await_end()  # Horovod is going to reduce it
        return handed

    def decompress(self, tensor: torch.Tensor, ctx: Place | Passed | Member | Original) -> torch.Tensor:
        """Return the mean for a context: Horovod's second hook, where ``tensor`` is the reduced token."""
        if isinstance(ctx, Passed):
            assert self._served is not None
            return self._served.plain.give_back(tensor, ctx)
        if isinstance(ctx, Place):
            assert self._served is not None
            return self._served.decompress(tensor, ctx)
        return ctx.of(tensor) if isinstance(ctx, Original) else self._standalone.decompress(tensor, ctx)

    def bind(self, optimizer: Any) -> None:
        """Serve this optimizer; see ``Compressor.bind``."""
        if horovod_internals.compression(optimizer) is not self._compressor:
            raise TypeError(
                "bind takes the optimizer that hvd.DistributedOptimizer(..., compression=this compressor) returned, "
                f"got {type(optimizer).__name__}"
            )
        self._serving(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state with torch tensors for arrays, so that ``torch.load`` needs no unpickling of
        NumPy."""
        if self._served is None:
            return {}
        state = self._served.state_dict()
        state["memory"] = {
            name: {key: torch.from_numpy(array) for key, array in arrays.items()}
            for name, arrays in state["memory"].items()
        }
        return state

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to what ``state_dict`` returned; a step that is under way leaves no trace."""
        if self._served is None:
            self._compressor.runtime.pending_state = state
        else:
            self._served.restore(state)

    @property
    def unit(self) -> MemoryUnit | None:
        """The unit of what is held back; None: nothing is yet."""
        return None if self._served is None else self._served.unit

    def refuse_join(self) -> bool:
        """Return whether this rank may not join; see ``ServedOptimizer.refuse_join``."""
        served = self._served
        if served is None or served.initialization != initialization():
            return True
        return served.optimizer is not None and served.refuse_join()

    def _serving(self, optimizer: Any) -> ServedOptimizer:
        """Return who serves the optimizer: the one that did so far, or a new one that takes its memory over."""
        served = self._served
        if served is not None and served.optimizer is optimizer:
            if served.initialization != initialization():
                served.enter_world(*_label_and_agreements(optimizer.process_set))
            return served
        if served is not None and served.optimizer is not None:
            gc.collect()  # an optimizer and its hooks refer to each other
            if served.optimizer is not None:
                theirs = (horovod_internals.parameters(one) for one in (served.optimizer, optimizer))
                if not set(next(theirs)).isdisjoint(next(theirs)):
                    # Its hooks have begun a step before those of the new one: another attempt is to say the same.
                    horovod_internals.forget_step(served.optimizer)
                raise ValueError(
                    f"{self._compressor!r} already serves another optimizer, and its memory belongs to that one's "
                    "gradients; make one compressor for each optimizer. An optimizer that is deleted lives on in its "
                    "parameters' hooks if another one is made of them before gc.collect() is called; now both must go: "
                    "del both, run a backward pass of anything (torch.zeros(1, requires_grad=True).sum().backward()), "
                    "for autograd keeps what one that failed has left until the next, and call gc.collect() until it "
                    "returns 0"
                )
        check_optimizer(self._compressor, optimizer)
        if served is not None:
            self._compressor.runtime.pending_state = self._left_by(served, optimizer)
            served.close()
        self._served = ServedOptimizer(self._compressor, optimizer, *_label_and_agreements(optimizer.process_set))
        return self._served

    def _left_by(self, served: ServedOptimizer, optimizer: Any) -> dict[str, Any] | None:
        """Return the state for the optimizer that takes over from the one that was served."""
        if served.process_set is not optimizer.process_set:
            raise ValueError(
                f"{self._compressor!r} served an optimizer in {served.process_set}, and its memory belongs to that; "
                f"the new one is in {optimizer.process_set}: make a new compressor"
            )
        if served.initialization != initialization():
            self._compressor.runtime.survivor = True
            served.engine.drop()
        elif served.engine.busy:
            served.engine.abandon()
        return moved(
            served.state_dict(),
            served.parameters,
            compressed_parameters(self._compressor, optimizer),
            horovod_internals.sizes(optimizer),
        )
