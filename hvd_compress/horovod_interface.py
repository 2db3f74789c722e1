"""What stands between a compressor and the framework whose tensors come: Horovod's two methods, and who runs them.

A compressor knows no driver. The package ``hvd_compress.drivers`` registers here which driver serves which framework.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Protocol


class Driver(Protocol):
    """What a compressor needs of the driver that runs it under a framework."""

    def compress(self, tensor: Any) -> tuple[Any, Any]: ...
    def decompress(self, tensor: Any, ctx: Any) -> Any: ...
    def bind(self, optimizer: Any) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state; nothing before the first step."""
        ...

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to what ``state_dict`` returned in this process, or to the beginning; all ranks do."""
        ...


class HorovodMethod:
    """A method that Horovod calls. On the class instead of an instance it says what to write, and TensorFlow's
    AutoGraph, which rewrites whatever a traced function calls, leaves it as it is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        function.autograph_info__ = {}  # type: ignore[attr-defined]
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        if instance is not None:
            return types.MethodType(self._function, instance)

        def refuse(*_: Any, **__: Any) -> None:
            raise TypeError(
                f"compression={owner.__name__} is the class; give Horovod an instance: compression={owner.__name__}()"
            )

        return functools.update_wrapper(refuse, self._function)


DriverClass = Callable[[Any], Driver]
"""Makes the driver of a compressor."""

_drivers: dict[str, Callable[[], DriverClass]] = {}
_hash_checks: list[Callable[[Any], None]] = []
_constructions: list[Callable[[], None]] = []


def register_driver(package: str, load: Callable[[], DriverClass]) -> None:
    """Say which driver serves tensors and optimizers whose classes come from ``package``; ``load`` imports it."""
    _drivers[package] = load


def register_hash_check(check: Callable[[Any], None]) -> None:
    """Have ``check`` called whenever a compressor is hashed: all that Horovod does with it while it makes a Keras
    optimizer."""
    _hash_checks.append(check)


def check_hashed(compressor: Any) -> None:
    """Run the checks of a compressor that is hashed."""
    for check in _hash_checks:
        check(compressor)


def register_construction(react: Callable[[], None]) -> None:
    """Have ``react`` called whenever a compressor is made: long before its first gradient tells the framework."""
    _constructions.append(react)


def constructed() -> None:
    """Tell that a compressor has been made."""
    for react in _constructions:
        react()


def driver_for(subject: Any) -> DriverClass:
    """Return the driver class for a gradient or an optimizer, by the framework its class comes from.

    Raises:
        TypeError: it comes from none that is supported.
    """
    for cls in type(subject).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in _drivers:
            return _drivers[package]()
    raise TypeError(
        f"hvd_compress has no driver for {type(subject).__module__}.{type(subject).__qualname__}; supported are "
        "tensors and optimizers of PyTorch and TensorFlow under Horovod, NumPy arrays in Simulation and drivers.mpi"
    )
