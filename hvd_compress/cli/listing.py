"""How ``hvd-compress list`` shows the catalogue."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hvd_compress.cli.catalogue import Entry, Parameter, flat


def table(entries: Sequence[Entry]) -> Table:
    """A row a compressor."""
    result = Table("compressor", "what it does", "parameters of its own", "advice", show_lines=True)
    result.columns[0].no_wrap = True
    for entry in entries:
        shown = [] if entry.error else own(entry)
        result.add_row(
            entry.name if entry.origin == "built-in" else f"{entry.name}\n({escape(entry.origin)})",
            f"[red]{escape(entry.error)}[/]" if entry.error else escape(entry.summary),
            escape(", ".join(f"{parameter.name}={default(parameter)}" for parameter in shown)),
            escape(entry.advice),
        )
    return result


COMMON = ("error_feedback", "wire", "min_numel", "bucket_mb", "seed")


def own(entry: Entry) -> list[Parameter]:
    """Without those that most compressors have."""
    return [parameter for parameter in entry.parameters if parameter.name not in COMMON]


def default(parameter: Parameter) -> str:
    return "(required)" if parameter.required else json.dumps(parameter.default)


def details(console: Console, entry: Entry) -> None:
    """All about one."""
    console.print(f"[bold]{entry.name}[/] ({escape(entry.cls or entry.origin)})", soft_wrap=True)
    if entry.error:
        console.print(f"[red]{escape(entry.error)}[/]", soft_wrap=True)
        return
    if entry.summary:
        console.print(Padding(escape(entry.summary), (1, 0)))
    if entry.description:
        console.print(Padding(escape(entry.description.replace("``", "")), (0, 0, 1, 2)))
    if entry.advice:
        console.print(Padding(f"[bold]Tuning:[/] {escape(entry.advice)}", (0, 0, 1, 0)))
    result = Table("parameter", "default", "what it is")
    for parameter in entry.parameters:
        result.add_row(parameter.name, escape(default(parameter)), escape(parameter.description))
    console.print(result)
    memory = "what is not sent is remembered" if entry.memory else "no memory"
    console.print(flat(f"collectives of a bucket: {', '.join(entry.collectives)}; {memory}"))


def as_json(entry: Entry) -> dict[str, Any]:
    return dataclasses.asdict(entry)


def parsed(text: str) -> dict[str, Any]:
    """A configuration as a mapping."""
    content: dict[str, Any] = yaml.safe_load(text)
    return content
