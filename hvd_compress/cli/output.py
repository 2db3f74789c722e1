"""How the commands speak: consoles, tables that fit, JSON, a bar, an end with a reason."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import track
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture (needs matplotlib).")]

WIDE = 150
"""Columns of what is not a terminal: lines long enough for the tables."""
NAME_WIDTH = 24
"""Columns that the names in a table have at the least, if they are so long."""
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "HOROVOD_RANK")
"""Variables by which a launcher tells a process that it is one of several ranks."""


def console() -> Console:
    """Return the console for results; what is not a screen gets lines long enough for the tables."""
    return Console(width=None if is_screen(sys.stdout) else WIDE, highlight=False, force_terminal=_unless_a_rank())


def messages() -> Console:
    """Return the console for what is no result."""
    return Console(stderr=True, highlight=False, force_terminal=_unless_a_rank())


def is_screen(stream: Any) -> bool:
    """Return whether somebody looks at this stream on a terminal."""
    return bool(stream.isatty()) and not _is_rank()


def _is_rank() -> bool:
    return any(name in os.environ for name in RANKS)


def _unless_a_rank() -> bool | None:
    """Return what rich takes to find out for itself whether there is a terminal, except under a launcher.

    mpirun gives its ranks a pseudo-terminal, which is nobody's screen: escape codes would end up in a file.
    """
    return False if _is_rank() else None


def print_table(table: Table) -> None:
    """Print a table; one that is wider than the screen in several parts, each with the first column."""
    out = console()
    for part in parts(table, out):
        out.print(part)


def parts(table: Table, out: Console) -> list[Table]:
    """Return tables that fit the console, each with the first column and some of the others.

    Columns with ``no_wrap``, the numbers, are never cut; the first one is folded where it is long.
    """
    first, *others = range(len(table.columns))
    groups = [[first]]
    for column in others:
        if len(groups[-1]) > 1 and _least_width(_part(table, [*groups[-1], column]), out) > out.width:
            groups.append([first])
        groups[-1].append(column)
    result = [_part(table, columns) for columns in groups]
    result[0].title, result[-1].caption = table.title, table.caption
    return result


def _least_width(table: Table, out: Console) -> int:
    return Measurement.get(out, out.options.update_width(10_000), table).minimum


def _part(table: Table, columns: Sequence[int]) -> Table:
    """Return a table of these columns, the first of which has room for a name and the numbers for all their digits."""
    result = Table()
    for index in columns:
        column = table.columns[index]
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        result.add_column(
            column.header,
            justify=column.justify,
            no_wrap=column.no_wrap,
            overflow="fold",
            min_width=longest if column.no_wrap else min(longest, NAME_WIDTH),
        )
    for cells in zip(*(table.columns[index].cells for index in columns), strict=True):
        result.add_row(*cells)
    return result


def print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def fail(message: object, status: int = 2) -> NoReturn:
    """End with a line that says why."""
    messages().print(f"hvd-compress: {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(status)


def progress(title: str) -> Callable[[Sequence[int]], Iterable[int]]:
    """Return a bar for an iteration, where somebody can see it."""
    return lambda sequence: track(
        sequence, title, console=messages(), transient=True, disable=not is_screen(sys.stderr)
    )
