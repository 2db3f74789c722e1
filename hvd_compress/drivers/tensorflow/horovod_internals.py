"""Who is calling: what Horovod's TensorFlow functions know when they call ``compress``, and do not pass on.

Horovod hands over one tensor. The call that it belongs to - all gradients of a step, their variables, groups, op and
process set - is in the local variables of Horovod's functions further up the stack, under the names they have in
Horovod 0.28.1 (AutoGraph, which rewrites these functions, keeps the names).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvd_compress.compressor import Compressor

MODULE = "horovod.tensorflow"


@dataclass(eq=False)
class Caller:
    """``gradients`` is None outside an optimizer or tape. ``groups`` are indices into it, if the user asked for any."""

    function: str
    op: int | None
    process_set: Any
    gradients: Sequence[Any] | None
    variables: Sequence[Any] | None
    groups: list[list[int]] | None


def find(tensor: Any) -> Caller:
    """The Horovod call that is handing over ``tensor``.

    Raises:
        NotImplementedError: inside a function that XLA is to compile.
        RuntimeError: Horovod is not calling.
    """
    caller = Caller("", None, None, None, None, None)
    for frame in _frames():
        known = frame.f_locals
        if frame.f_globals.get("__name__") == MODULE:
            _look(caller, known, frame.f_code.co_name, tensor)
        elif known.get("self") is not None:
            _refuse_xla(known["self"])
    if not caller.function:
        raise RuntimeError(
            "compress was not called by horovod.tensorflow: pass the compressor to Horovod as compression=, and let "
            "Horovod call it"
        )
    return caller


def check_keras(compressor: Compressor) -> None:
    """Called when a compressor is hashed, which is the one thing Horovod does with it while it makes a Keras optimizer.

    Raises:
        RuntimeError: the optimizer is of Keras 3, which Horovod 0.28.1 never reduces the gradients of.
        ValueError: the compressor serves another optimizer.
    """
    for _, frame in zip(range(8), _frames(), strict=False):
        if frame.f_globals.get("__name__") == "horovod._keras" and frame.f_code.co_name == "__init__":
            optimizer = frame.f_locals["self"]
            break
    else:
        return
    keras = sys.modules.get("keras")
    if any(cls.__module__.partition(".")[0] == "keras" for cls in type(optimizer).__mro__) and (
        getattr(keras, "__version__", "2").partition(".")[0] != "2"
    ):
        raise RuntimeError(
            "Horovod 0.28.1 does not reduce the gradients of a Keras 3 optimizer: every rank would train by itself. "
            "Set TF_USE_LEGACY_KERAS=1 (and install tf-keras) before TensorFlow is imported, or use "
            "hvd.DistributedGradientTape in a loop of your own"
        )
    owner = compressor.runtime.owner() if compressor.runtime.owner is not None else None
    if owner is not None and owner is not optimizer:
        raise ValueError(
            f"{compressor!r} already serves another optimizer, and its memory belongs to that one's gradients; make "
            "one compressor for each optimizer"
        )
    compressor.runtime.owner = weakref.ref(optimizer)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _look(caller: Caller, known: dict[str, Any], function: str, tensor: Any) -> None:
    """Take what this function knows, unless one that is nearer has said it."""
    name = function.removeprefix("tf__")
    if not caller.function and name in ("allreduce", "grouped_allreduce", "reducescatter", "grouped_reducescatter"):
        caller.function = name
    if caller.op is None and isinstance(known.get("op"), int):
        caller.op = known["op"]
    if caller.process_set is None and hasattr(known.get("process_set"), "process_set_id"):
        caller.process_set = known["process_set"]
    gradients = known.get("grads")
    if caller.gradients is None and isinstance(gradients, (list, tuple)) and any(g is tensor for g in gradients):
        caller.gradients = gradients
    if caller.gradients is not None:
        variables = known.get("vars")
        if (
            caller.variables is None
            and isinstance(variables, (list, tuple))
            and len(variables) == len(caller.gradients)
            and all(hasattr(variable, "shape") for variable in variables)
        ):
            caller.variables = variables
        split = known.get("grads_split")
        if caller.groups is None and isinstance(split, list) and split:
            caller.groups = [[index for index, _ in group] for group in split]


def _refuse_xla(owner: Any) -> None:
    cls = type(owner)
    if (
        cls.__module__.startswith("tensorflow.")
        and cls.__name__ == "Function"
        and getattr(owner, "_jit_compile", False)
    ):
        raise NotImplementedError(
            "XLA cannot compile a step that compresses gradients (nor any Horovod call on the CPU): leave out "
            "jit_compile=True for the function that calls Horovod; functions that compute only, such as the model's, "
            "may keep it"
        )
