"""Every look into the private parts of Horovod under PyTorch.

Horovod hands ``compress`` one tensor and says nothing else. Which parameter and optimizer it belongs to, or what the
user asked ``hvd.allreduce`` for, is in the local variables of the Horovod function that is calling; what an optimizer
has under way is in attributes without a promise. Each look says what it needs; all are known of the versions in
``KNOWN``.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import islice
from time import perf_counter
from types import CodeType, FrameType
from typing import Any, NamedTuple

import horovod
import horovod.torch as hvd
import torch
from horovod.torch import mpi_ops
from horovod.torch import optimizer as optimizers
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # PyTorch documents it there

from hvd_compress.drivers.frames import callers

KNOWN = ("0.28.1",)
DEPTH = 7
"""How many callers of a look are looked at: behind the driver and the compressor comes Horovod, unless the user wraps
the compressor."""
LOOKS, AT_ONCE = 5, 1e-4
"""How often ``await_end`` looks, and the seconds in which it has Python's lock back if nobody wants it."""


class GradientCall(NamedTuple):
    """An optimizer hands over the gradient of ``parameter``; what it starts is kept in its handles under ``key``.
    ``first``: it is the first gradient under this key."""

    optimizer: Any
    parameter: torch.Tensor
    key: Any
    first: bool


class FunctionCall(NamedTuple):
    """A function of ``horovod.torch`` hands over a tensor. ``variables`` are its local ones: all its arguments, and
    whatever is added to them, for as long as the function runs."""

    function: str
    variables: MutableMapping[str, Any]


def check_version() -> None:
    """Raise RuntimeError unless this is a version of Horovod that is known here."""
    if horovod.__version__ not in KNOWN:
        raise RuntimeError(
            f"hvd_compress knows Horovod {', '.join(KNOWN)} under PyTorch, this is {horovod.__version__}: it reads "
            "in Horovod's local variables what a gradient belongs to, and these may have changed"
        )


def caller() -> GradientCall | FunctionCall:
    """Return the call of Horovod's that is handing a tensor to ``compress``.

    Needs: the functions in ``_LOOKS`` call ``compress``, themselves or in a comprehension.

    Raises:
        RuntimeError: Horovod is not calling, or not as it is known to.
    """
    for frame in islice(callers(), DEPTH):
        look = _LOOKS.get(id(frame.f_code))
        if look is not None:
            try:
                return look(frame)
            except (KeyError, AttributeError, IndexError) as error:
                raise RuntimeError(
                    f"Horovod {horovod.__version__}: {frame.f_code.co_name} has no {error}, which hvd_compress needs "
                    "to know what the tensor is"
                ) from error
    raise RuntimeError(
        "compress was not called by a function of horovod.torch: pass the compressor to Horovod as compression=, and "
        "let Horovod call it"
    )


def optimizer_calling() -> Any:
    """Return the optimizer that is handing a tensor to ``compress``, None if a function is: ``caller`` at half its
    costs."""
    for frame in islice(callers(), DEPTH):
        if id(frame.f_code) in _LOOKS:
            return _function_of(frame).f_locals["self"] if id(frame.f_code) in _GRADIENTS else None
    return None


class _Held(dict[int, Any]):
    """Horovod's tensors by handle, each of which C++ holds once more than Horovod's thread does."""

    def __init__(self, known: Mapping[int, Any]) -> None:
        super().__init__()
        self._held: dict[int, Any] = {}
        for handle, tensors in known.items():
            self[handle] = tensors

    def __setitem__(self, handle: int, tensors: Any) -> None:
        super().__setitem__(handle, tensors)
        sent, result = tensors[0], tensors[-1]
        in_place = sent is result and isinstance(sent, torch.Tensor)  # as every gradient is
        self._held[handle] = to_dlpack(sent) if in_place else [to_dlpack(tensor) for tensor in _flat(tensors)]

    def pop(self, handle: int, *default: Any) -> Any:
        self._held.pop(handle, None)
        return super().pop(handle, *default)


def _flat(tensors: Any) -> Iterator[torch.Tensor]:
    if isinstance(tensors, torch.Tensor):
        yield tensors
    elif tensors is not None:
        for inner in tensors:
            yield from _flat(inner)


def hold_tensors() -> None:
    """See to it that Horovod's thread does not need Python's lock to let go of a tensor when a collective is done.

    PyTorch keeps a tensor and its Python object together: who lets go of a tensor, and leaves it to Python alone, takes
    Python's lock. Horovod's thread would wait for the one that trains; for ever, if it does so under a lock of its own,
    for which that one waits, as Horovod is ending; and a process that is forked at that moment finds Python's list of
    threads locked. Needs: ``_handle_map``, which ``hvd.init`` makes anew.
    """
    if not isinstance(mpi_ops._handle_map, _Held):
        mpi_ops._handle_map = _Held(mpi_ops._handle_map)


def await_end() -> None:
    """Return when Horovod has ended, if it is just about to since a worker was lost; else at once. For elastic jobs,
    before a collective is started: what is started while Horovod's thread ends would outlive that.

    This waits without Python's lock, and looks again if it has taken long to get that back. Needs:
    ``horovod_number_of_process_sets``.
    """
    for _ in range(LOOKS):
        started = perf_counter()
        mpi_ops._basics.MPI_LIB_CTYPES.horovod_number_of_process_sets()
        if perf_counter() - started < AT_ONCE:
            return


def parameters(optimizer: Any) -> list[torch.Tensor]:
    """Return the parameters whose gradients Horovod reduces, in the optimizer's order. Needs: ``_requires_update``."""
    return [p for group in optimizer.param_groups for p in group["params"] if p in optimizer._requires_update]


def parameter_name(optimizer: Any, parameter: torch.Tensor) -> str:
    """Return the name under which Horovod reduces a parameter's gradient. Needs: ``_parameter_names``."""
    name: str = optimizer._parameter_names[parameter]
    return name


def sizes(optimizer: Any) -> dict[str, int]:
    """Return the element counts of all parameters whose gradients Horovod reduces, by name."""
    return {parameter_name(optimizer, parameter): parameter.numel() for parameter in parameters(optimizer)}


def compression(optimizer: Any) -> Any:
    """Return what an optimizer was given as ``compression=``; None if Horovod did not make it. Needs:
    ``_compression``."""
    return getattr(optimizer, "_compression", None)


def adds_deltas(optimizer: Any) -> bool:
    """Whether this is Horovod's optimizer for ``op=hvd.Adasum``. Needs: ``_starting_models``."""
    return hasattr(optimizer, "_starting_models")


def handles(optimizer: Any) -> dict[Any, tuple[Any, Any]]:
    """Return what an optimizer has under way: by parameter, or by tuple of parameters that are grouped, a handle (None:
    nothing was started; a function: sparse gradients) and a context. Needs: ``_handles``."""
    found: dict[Any, tuple[Any, Any]] = optimizer._handles
    return found


def grouped(optimizer: Any) -> bool:
    """Whether gradients are reduced in groups. Needs: ``_groups``."""
    return optimizer._groups is not None


def end_step(optimizer: Any) -> None:
    """Wait for the collectives that an optimizer has under way, and leave it as after ``synchronize`` and ``step``; its
    gradients are nobody's. Needs: ``_handles``, ``_allreduce_delay``, ``_group_counts``, ``_synchronized``, and that
    ``synchronize`` takes a handle that is done."""
    for handle, _ctx in handles(optimizer).values():
        if handle is not None and not callable(handle):
            hvd.synchronize(handle)
    forget_step(optimizer)


def forget_step(optimizer: Any) -> None:
    """Leave an optimizer as ``end_step`` does, without waiting: other ranks may not take part in what it has under way.
    Needs what ``end_step`` needs."""
    handles(optimizer).clear()
    optimizer._allreduce_delay.update(dict.fromkeys(optimizer._allreduce_delay, optimizer.backward_passes_per_step))
    optimizer._group_counts.update(dict.fromkeys(optimizer._group_counts, 0))
    optimizer._synchronized = False


def pending(optimizer: Any, key: Any) -> bool:
    """Whether an optimizer has started something that it has not synchronized; ``key`` is looked at first. Needs:
    ``_handles``."""
    found = handles(optimizer)
    handle, _ = found.get(key, (None, None))
    return handle is not None or any(handle is not None for handle, _ in found.values())


def before_synchronize(optimizer: Any, prepare: Callable[[], None]) -> None:
    """Have ``prepare`` called whenever an optimizer's ``synchronize`` begins, which ``step`` calls too. The optimizer
    is not kept alive by that. Needs: ``step`` calls the ``synchronize`` of the object."""
    alive, replaced = weakref.ref(optimizer), vars(optimizer).get("synchronize")  # the user's own goes on to count
    synchronize = type(optimizer).synchronize

    @functools.wraps(synchronize)
    def prepared() -> None:
        prepare()
        if replaced is None:
            synchronize(alive())
        else:
            replaced()

    optimizer.synchronize = prepared


def hand_over(optimizer: Any) -> None:
    """Start what ``synchronize`` would, so that it has only to wait: gradients that are missing on this rank, and those
    of fewer backward passes. Needs: ``_handles``, ``_requires_update``, ``_allreduce_grad_async``."""
    found = handles(optimizer)
    handed: set[torch.Tensor] = set()
    for key in found:
        handed.update(key if isinstance(key, tuple) else (key,))
    waiting = [key for key, (handle, _ctx) in found.items() if handle is None]
    for parameter in (*(optimizer._requires_update - handed), *waiting):
        found[parameter] = optimizer._allreduce_grad_async(parameter)


def synchronized(optimizer: Any) -> bool:
    """Whether ``synchronize`` was called since the last ``step``. Needs: ``_synchronized``."""
    return bool(optimizer._synchronized)


def reduction(op: Any, average: Any) -> Any:
    """Return the op that ``op`` and the older ``average`` mean together. Needs:
    ``handle_average_backwards_compatibility``.

    Raises:
        ValueError: both are given.
    """
    return mpi_ops.handle_average_backwards_compatibility(op, average)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the functions of ``horovod.torch`` that take ``compression=`` and hand it tensors, by name."""
    for name, function in vars(hvd).items():
        if not inspect.isfunction(function) or function is hvd.DistributedOptimizer:
            continue
        if "compression" in inspect.signature(function).parameters:
            yield name, function


def _caller_code(function: Callable[..., Any]) -> CodeType:
    """Return the code that calls ``compress``: the function's own or, before Python 3.12, that of a comprehension."""
    code: CodeType = inspect.unwrap(function).__code__
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and "compress" in constant.co_names:
            return constant
    return code


def _look_at_gradient(frame: FrameType) -> GradientCall:
    known = frame.f_locals
    parameter = known["p"]
    return GradientCall(known["self"], parameter, parameter, True)


def _look_at_group(frame: FrameType) -> GradientCall:
    parameter = frame.f_locals["p"]
    known = _function_of(frame).f_locals
    group = known["ps"]
    return GradientCall(known["self"], parameter, group, parameter is group[0])


def _look_at(name: str) -> Callable[[FrameType], FunctionCall]:
    return lambda frame: FunctionCall(name, _function_of(frame).f_locals)


def _function_of(frame: FrameType) -> FrameType:
    """Return the frame of the function that a comprehension is in, or a function's own."""
    if frame.f_code.co_name != "<listcomp>":
        return frame
    if frame.f_back is None:
        raise AttributeError("caller")
    return frame.f_back


_CODES: list[tuple[CodeType, Callable[[FrameType], GradientCall | FunctionCall]]] = [
    (_caller_code(optimizers._DistributedOptimizer._allreduce_grad_async), _look_at_gradient),
    (_caller_code(optimizers._DistributedOptimizer._grouped_allreduce_grad_async), _look_at_group),
    (_caller_code(optimizers._DistributedAdasumOptimizer._allreduce_grad_async), _look_at_gradient),
    *((_caller_code(function), _look_at(name)) for name, function in functions()),
]
_LOOKS = {id(code): look for code, look in _CODES}
"""By identity: code objects compare by content, which takes longer."""
_GRADIENTS = frozenset(key for key, look in _LOOKS.items() if look in (_look_at_gradient, _look_at_group))
