"""Configurations with comments: the files that come with the package, and those made of a compressor's docstring."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml

from hvd_compress import registry
from hvd_compress.advisor.catalogue import Entry, entry
from hvd_compress.validation import nearest


def folder() -> Path:
    """Return the folder of the files: a wheel has it inside of the package, a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def files() -> dict[str, Path]:
    """Return the files that come with the package, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def text(name: str) -> str:
    """Return YAML with comments: the file of that name that comes with the package, or one made of the docstring.

    Raises:
        ValueError: there is no such compressor, or it cannot be loaded.
    """
    found = files().get(name)
    if found:
        return found.read_text(encoding="utf-8")
    if ":" not in name and name not in registry.names():
        names = sorted({*files(), *registry.names()})
        raise ValueError(f"no configuration {name!r}{nearest(name, names)}; there are {', '.join(names)}")
    return generated(entry(name))


def generated(made: Entry) -> str:
    """Return YAML that has all arguments with their defaults, each below what its docstring says.

    Raises:
        ValueError: the compressor cannot be loaded.
    """
    if made.error:
        raise ValueError(f"compressor {made.name!r} {made.error}")
    lines = [_comment(part) for part in (made.summary, made.advice) if part]
    lines.append(f"name: {made.name}")
    for argument in made.parameters:
        lines.append("")
        if argument.description:
            lines.append(_comment(argument.description))
        if argument.required:
            lines.append(f"{argument.name}:  # has no default: give it a value")
        else:
            value = yaml.safe_dump([argument.default], default_flow_style=True, sort_keys=False, width=10**6)
            lines.append(f"{argument.name}: {value.strip()[1:-1]}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
