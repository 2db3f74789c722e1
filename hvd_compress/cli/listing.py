"""``hvd-compress list``: the compressors, their arguments and defaults, and configurations to start from."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hvd_compress.advisor import catalogue, configurations
from hvd_compress.advisor.catalogue import Argument, Entry, flat
from hvd_compress.cli.output import Json, console, fail, print_json

EXIT_STATUS = "Exit status: 0 done; 1 the compressor cannot be loaded; 2 there is no such compressor."
COMMON = ("error_feedback", "memory_unit", "wire", "min_numel", "bucket_mb", "seed")
"""Arguments that most compressors have."""


def list_(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Describe this compressor and its parameters: a name, or MODULE:CLASS.", show_default=False
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME", help="Print a configuration to start from, as YAML with comments."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the compressors, their parameters, defaults and a word of advice."""
    if name and config:
        fail("give a NAME, or --config NAME")
    try:
        if config:
            text = configurations.text(config)
            if json_:
                print_json({"name": config, "text": text, "config": yaml.safe_load(text)})
            else:
                sys.stdout.write(text)
            return
        found = [catalogue.entry(name)] if name else catalogue.entries()
    except ValueError as error:
        fail(error)
    if json_:
        described = [dataclasses.asdict(entry) for entry in found]
        print_json(described[0] if name else described)
    elif name:
        details(console(), found[0])
    else:
        console().print(table(found))
        console().print(
            "hvd-compress list NAME: all about one; hvd-compress list --config NAME: a YAML file to start from"
        )
    if name and found[0].error:
        raise typer.Exit(1)


def table(entries: Sequence[Entry]) -> Table:
    """Return a row a compressor."""
    result = Table("compressor", "what it does", "parameters of its own", "advice", show_lines=True)
    result.columns[0].no_wrap = True
    for entry in entries:
        shown = [] if entry.error else own(entry)
        result.add_row(
            entry.name if entry.origin == "built-in" else f"{entry.name}\n({escape(entry.origin)})",
            f"[red]{escape(entry.error)}[/]" if entry.error else escape(entry.summary),
            escape(", ".join(f"{argument.name}={default(argument)}" for argument in shown)),
            escape(entry.advice),
        )
    return result


def own(entry: Entry) -> list[Argument]:
    """Return the arguments without those that most compressors have."""
    return [argument for argument in entry.parameters if argument.name not in COMMON]


def default(argument: Argument) -> str:
    """Return an argument's default as the tables show it."""
    return "(required)" if argument.required else json.dumps(argument.default)


def details(out: Console, entry: Entry) -> None:
    """Print all about one."""
    out.print(f"[bold]{entry.name}[/] ({escape(entry.cls or entry.origin)})", soft_wrap=True)
    if entry.error:
        out.print(f"[red]{escape(entry.error)}[/]", soft_wrap=True)
        return
    if entry.summary:
        out.print(Padding(escape(entry.summary), (1, 0)))
    if entry.description:
        out.print(Padding(escape(entry.description.replace("``", "")), (0, 0, 1, 2)))
    if entry.advice:
        out.print(Padding(f"[bold]Tuning:[/] {escape(entry.advice)}", (0, 0, 1, 0)))
    result = Table("parameter", "default", "what it is")
    for argument in entry.parameters:
        result.add_row(argument.name, escape(default(argument)), escape(argument.description))
    out.print(result)
    memory = "what is not sent is remembered" if entry.memory else "no memory"
    out.print(flat(f"collectives of a bucket: {', '.join(entry.collectives)}; {memory}"))
