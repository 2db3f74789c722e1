"""Which compressors there are, their parameters, and configurations with comments: from their docstrings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from hvd_compress import registry, schedules
from hvd_compress.compressor import Compressor
from hvd_compress.validation import nearest

NOT_CONFIGURED = ("process_set",)
"""Belongs to a run, not to a configuration (``Compressor.to_config``)."""


@dataclasses.dataclass(frozen=True)
class Parameter:
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
    parameters: tuple[Parameter, ...] = ()
    error: str = ""


def entries() -> list[Entry]:
    """All compressors, sorted by name."""
    return [entry(name) for name in registry.names()]


def entry(name: str) -> Entry:
    """The compressor of that name. One that cannot be loaded has an ``error``. Raises ValueError: there is none."""
    if name not in registry.names():
        registry.get(name)  # says which is the nearest
    try:
        cls = registry.get(name)
        text = docstring(cls)
        instance = None if any(p.required for p in parameters(cls)) else cls()
        return Entry(
            name,
            origin(name),
            f"{cls.__module__}.{cls.__qualname__}",
            flat(text.partition("\n\n")[0]),
            tuning(text),
            description(text),
            tuple(kind.__name__ for kind in instance.schedule) if instance else (),
            bool(instance and instance.error_feedback),
            tuple(parameters(cls)),
        )
    except Exception as error:  # whatever a third party's module raises when it is imported
        return Entry(name, origin(name), error=f"cannot be loaded: {type(error).__name__}: {error}")


def origin(name: str) -> str:
    """``built-in``, or the name of the distribution whose entry point it is."""
    if name in registry.BUILT_IN:
        return "built-in"
    points = importlib.metadata.entry_points(group=registry.GROUP)
    return next((point.dist.name for point in points if point.name == name and point.dist), "entry point")


def docstring(cls: type) -> str:
    """Its own, not the signature that a dataclass without one gets."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def flat(text: str) -> str:
    """As one line, without the quotes of code."""
    return " ".join(text.replace("``", "").split())


def tuning(text: str) -> str:
    """The paragraph after ``Tuning:``."""
    found = re.search(r"^Tuning:(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return flat(found[1]) if found else ""


def description(text: str) -> str:
    """Everything but the summary, the arguments, the advice and the examples."""
    paragraphs = re.split(r"\n\s*\n", text)[1:]
    return "\n\n".join(p for p in paragraphs if not p.startswith(("Args:", "Raises:", "Tuning:", ">>>")))


def arguments(text: str) -> dict[str, str]:
    """What the ``Args:`` of a docstring say, by name."""
    found = re.search(r"^Args:\n(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if not found:
        return {}
    items = re.split(r"^(\w+):", textwrap.dedent(found[1]), flags=re.MULTILINE)
    return {name: flat(said) for name, said in zip(items[1::2], items[2::2], strict=True)}


def parameters(cls: type[Compressor]) -> list[Parameter]:
    """Its parameters, what may be given by position and what is its own first, each with what the class itself or the
    nearest base says of it."""
    described: dict[str, str] = {}
    order = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
    for base in cls.__mro__[:-1]:
        described = {**arguments(docstring(base)), **described}
        own = [name for name in cls.parameters() if name in inspect.get_annotations(base)]
        order += [name for name in own if name not in order]
    return [
        Parameter(name, default(value), value is dataclasses.MISSING, described.get(name, ""))
        for name, value in ((name, cls.parameters()[name]) for name in order)
        if name not in NOT_CONFIGURED
    ]


def default(value: Any) -> Any:
    """A default as JSON and YAML have it."""
    if value is dataclasses.MISSING:
        return None
    return list(value) if isinstance(value, tuple) else schedules.to_config(value)


def folder() -> Path:
    """The configurations that come with the package: in the wheel inside of it, in a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def files() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def configuration(name: str) -> str:
    """YAML with comments: the file of that name that comes with the package, or one made of the docstring.

    Raises:
        ValueError: there is no such compressor, or it cannot be loaded.
    """
    found = files().get(name)
    if found:
        return found.read_text(encoding="utf-8")
    if name not in registry.names():
        names = sorted({*files(), *registry.names()})
        raise ValueError(f"no configuration {name!r}{nearest(name, names)}; there are {', '.join(names)}")
    return generate(entry(name))


def generate(made: Entry) -> str:
    """All parameters with their defaults, each below what its docstring says."""
    if made.error:
        raise ValueError(f"compressor {made.name!r} {made.error}")
    lines = [comment(part) for part in (made.summary, made.advice) if part]
    lines.append(f"name: {made.name}")
    for parameter in made.parameters:
        lines.append("")
        if parameter.description:
            lines.append(comment(parameter.description))
        if parameter.required:
            lines.append(f"{parameter.name}:  # has no default: give it a value")
        else:
            value = yaml.safe_dump([parameter.default], default_flow_style=True, sort_keys=False, width=10**6)
            lines.append(f"{parameter.name}: {value.strip()[1:-1]}")
    return "\n".join(lines) + "\n"


def comment(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
