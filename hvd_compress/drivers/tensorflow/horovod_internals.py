"""Every look into Horovod's private parts under TensorFlow, and the Horovod versions that each is known of.

Horovod hands over one tensor. The call that it belongs to - all gradients of a step, their variables, groups, op,
factors and process set - is in the local variables of Horovod's functions further up the stack (AutoGraph, which
rewrites these functions, keeps the names). What is not found where it should be is an error: nothing is guessed.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import horovod

from hvd_compress.drivers.frames import callers

if TYPE_CHECKING:
    from hvd_compress.compressor import Compressor

KNOWN_VERSIONS = ("0.28.1",)
"""The versions of Horovod whose private parts are known here, and tested."""

MODULE = "horovod.tensorflow"
FUNCTIONS = ("allreduce", "grouped_allreduce", "reducescatter", "grouped_reducescatter")
"""The functions of ``MODULE`` that call ``compress``. Known of 0.28.1."""
BRANCHES = ("_allreduce_cond", "_grouped_allreduce_cond")
"""The functions of ``MODULE`` through which optimizers and tapes reduce gradients. Known of 0.28.1."""
ARGUMENTS = ("op", "process_set", "prescale_factor", "postscale_factor")
"""Arguments of each of ``FUNCTIONS``; ``op`` is never None where ``compress`` is called. Known of 0.28.1."""
SCALED = ("compute_gradients", "_compute_gradients", "get_gradients")
"""Methods of Keras's ``LossScaleOptimizer`` in which the optimizer inside makes, and Horovod reduces, gradients of the
scaled loss. Known of tf-keras 2.18."""


@dataclass(frozen=True, eq=False)
class OptimizerCall:
    """All gradients that an optimizer or tape reduces together: its arguments, known of 0.28.1.

    ``groups`` are indices into ``gradients``, None unless the user asked for groups. ``scaled``: whether a
    ``LossScaleOptimizer`` around the optimizer has multiplied the loss by its scale. Nobody tells whether the user has.
    """

    gradients: Sequence[Any]
    variables: Sequence[Any]
    groups: list[list[int]] | None
    scaled: bool


@dataclass(frozen=True, eq=False)
class HorovodCall:
    """The call of one of ``FUNCTIONS`` that hands a tensor over; ``optimizer`` is None outside optimizers and tapes."""

    function: str
    op: int
    process_set: Any
    prescale_factor: float
    postscale_factor: float
    ignore_name_scope: bool
    name: str | None
    optimizer: OptimizerCall | None


def find_call(tensor: Any) -> HorovodCall:
    """Find the call of Horovod's that is handing over ``tensor``.

    It needs the frames of the functions in ``FUNCTIONS`` and ``BRANCHES``, and of ``allreduce_grads``, which optimizers
    and tapes call through them. Known of 0.28.1.

    Raises:
        NotImplementedError: a function that XLA is to compile makes the call.
        RuntimeError: Horovod is not calling, or it is a version that looks different inside.
    """
    _check_version()
    frames, scaled = [], False
    for frame in callers():
        if frame.f_globals.get("__name__") == MODULE:
            frames.append(frame)
        elif "self" in frame.f_code.co_varnames:
            owner = frame.f_locals.get("self")
            _refuse_xla(owner)
            scaled = scaled or (frame.f_code.co_name in SCALED and hasattr(type(owner), "get_scaled_loss"))
    names = [frame.f_code.co_name.removeprefix("tf__") for frame in frames]
    place = next((place for place, name in enumerate(names) if name in FUNCTIONS), None)
    if place is None:
        raise RuntimeError(
            "compress was not called by horovod.tensorflow: pass the compressor to Horovod as compression=, and let "
            "Horovod call it"
        )
    known = frames[place].f_locals
    wrong = [name for name in ARGUMENTS if name not in known]
    if wrong or not isinstance(known["op"], int) or not hasattr(known["process_set"], "process_set_id"):
        raise _unknown(f"the arguments {', '.join(wrong or ARGUMENTS)} of hvd.{names[place]}")
    optimizer = None
    if "allreduce_grads" in names[place:]:
        optimizer = _optimizer_call(frames[place + names[place:].index("allreduce_grads")].f_locals, tensor, scaled)
    elif any(name in BRANCHES for name in names[place:]):
        raise _unknown("the function that reduces an optimizer's gradients")
    return HorovodCall(
        names[place],
        known["op"],
        known["process_set"],
        float(known["prescale_factor"]),
        float(known["postscale_factor"]),
        bool(known.get("ignore_name_scope", False)),
        known.get("name"),
        optimizer,
    )


def check_keras(compressor: Compressor) -> None:
    """Check a Keras optimizer while it is made; called when a compressor is hashed, the one thing Horovod does with it.

    It needs ``self`` of the optimizer's ``__init__`` in ``horovod._keras``. Known of 0.28.1.

    Raises:
        RuntimeError: the optimizer is of Keras 3, which Horovod 0.28.1 never reduces the gradients of.
        ValueError: the compressor serves another optimizer.
    """
    for _, frame in zip(range(8), callers(), strict=False):
        if frame.f_globals.get("__name__") == "horovod._keras" and frame.f_code.co_name == "__init__":
            optimizer = frame.f_locals["self"]
            break
    else:
        return
    _check_version()
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


def _check_version() -> None:
    if horovod.__version__ not in KNOWN_VERSIONS:
        raise RuntimeError(
            f"Horovod {horovod.__version__} is installed; under TensorFlow, gradients can be compressed with Horovod "
            f"{', '.join(KNOWN_VERSIONS)} alone, for what Horovod does not pass on is looked up inside it"
        )


def _unknown(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} cannot be found in this Horovod ({horovod.__version__}): it has been changed, or something is "
        "wrapped around it; install horovod==" + " or ".join(KNOWN_VERSIONS) + " as it is published"
    )


def _optimizer_call(known: dict[str, Any], tensor: Any, scaled: bool) -> OptimizerCall:
    """Read the arguments of ``allreduce_grads``: ``grads``, ``vars``, and ``grads_split`` if there are ``groups``."""
    gradients, variables = known.get("grads"), known.get("vars")
    if not isinstance(gradients, (list, tuple)) or not any(gradient is tensor for gradient in gradients):
        raise _unknown("the gradients of an optimizer or tape")
    if not isinstance(variables, (list, tuple)) or len(variables) != len(gradients):
        raise _unknown("the variables of an optimizer or tape")
    if "groups" not in known:
        raise _unknown("the groups of an optimizer or tape")
    if known["groups"] is None:
        return OptimizerCall(gradients, variables, None, scaled)
    split = known.get("grads_split")
    if not isinstance(split, list):
        raise _unknown("the groups of an optimizer or tape")
    return OptimizerCall(gradients, variables, [[index for index, _ in group] for group in split], scaled)


def _refuse_xla(owner: Any) -> None:
    """Raise if ``owner`` is a function of TensorFlow's that is being traced for XLA (TensorFlow 2.18)."""
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
