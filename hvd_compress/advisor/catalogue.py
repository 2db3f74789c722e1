"""Which compressors there are, their arguments, and a word of advice: from their docstrings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
import textwrap
from typing import Any

from hvd_compress import registry, schedules
from hvd_compress.compressor import Compressor

NOT_CONFIGURED = ("process_set",)
"""Arguments that belong to a run and not to a configuration (``Compressor.to_config``)."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """A compressor's argument; ``default`` is JSON-able."""

    name: str
    default: Any
    required: bool
    description: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A compressor as ``hvd-compress list`` shows it; ``error`` says why there is nothing else to show."""

    name: str
    origin: str
    """``built-in``, or the distribution that brings it."""
    cls: str = ""
    summary: str = ""
    advice: str = ""
    description: str = ""
    collectives: tuple[str, ...] = ()
    memory: bool = False
    """Whether what is not sent is remembered, by default."""
    parameters: tuple[Argument, ...] = ()
    error: str = ""


def entries() -> list[Entry]:
    """Return all compressors, sorted by name."""
    return [entry(name) for name in registry.names()]


def entry(name: str) -> Entry:
    """Return the compressor of that name, or at ``module:Class``; one that cannot be loaded has an ``error``.

    Raises:
        ValueError: there is none.
    """
    if ":" not in name and name not in registry.names():
        registry.get(name)  # says which is the nearest
    try:
        cls = registry.get(name)
        text = docstring(cls)
        instance = None if any(argument.required for argument in arguments(cls)) else cls()
        return Entry(
            name,
            origin(name),
            f"{cls.__module__}.{cls.__qualname__}",
            flat(text.partition("\n\n")[0]),
            tuning(text),
            description(text),
            tuple(kind.__name__ for kind in instance.schedule) if instance else (),
            bool(instance and instance.error_feedback),
            tuple(arguments(cls)),
        )
    except Exception as error:  # whatever a third party's module raises when it is imported
        return Entry(name, origin(name), error=f"cannot be loaded: {type(error).__name__}: {error}")


def origin(name: str) -> str:
    """Return ``built-in``, the distribution whose entry point it is, or the module of a ``module:Class``."""
    if name in registry.BUILT_IN:
        return "built-in"
    if ":" in name:
        return name.partition(":")[0]
    points = importlib.metadata.entry_points(group=registry.GROUP)
    return next((point.dist.name for point in points if point.name == name and point.dist), "entry point")


def docstring(cls: type) -> str:
    """Return the class's own docstring, not the signature that a dataclass without one gets."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def flat(text: str) -> str:
    """Return the text as one line, without the quotes of code."""
    return " ".join(text.replace("``", "").split())


def tuning(text: str) -> str:
    """Return the paragraph after ``Tuning:``."""
    found = re.search(r"^Tuning:(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return flat(found[1]) if found else ""


def description(text: str) -> str:
    """Return everything but the summary, the arguments, the advice and the examples."""
    paragraphs = re.split(r"\n\s*\n", text)[1:]
    return "\n\n".join(p for p in paragraphs if not p.startswith(("Args:", "Raises:", "Tuning:", ">>>")))


def described_arguments(text: str) -> dict[str, str]:
    """Return what the ``Args:`` of a docstring say, by name."""
    found = re.search(r"^Args:\n(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if not found:
        return {}
    items = re.split(r"^(\w+):", textwrap.dedent(found[1]), flags=re.MULTILINE)
    return {name: flat(said) for name, said in zip(items[1::2], items[2::2], strict=True)}


def arguments(cls: type[Compressor]) -> list[Argument]:
    """Return a compressor's arguments, each with what the class itself or the nearest base says of it; first come those
    that may be given by position and those of the class itself."""
    described: dict[str, str] = {}
    order = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
    for base in cls.__mro__[:-1]:
        described = {**described_arguments(docstring(base)), **described}
        own = [name for name in cls.parameters() if name in inspect.get_annotations(base)]
        order += [name for name in own if name not in order]
    return [
        Argument(name, as_config(value), value is dataclasses.MISSING, described.get(name, ""))
        for name, value in ((name, cls.parameters()[name]) for name in order)
        if name not in NOT_CONFIGURED
    ]


def as_config(value: Any) -> Any:
    """Return a default as JSON and YAML have it."""
    if value is dataclasses.MISSING:
        return None
    return list(value) if isinstance(value, tuple) else schedules.to_config(value)
