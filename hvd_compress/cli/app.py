"""The command and its subcommands, each of which is in a module of its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated

import typer

import hvd_compress
from hvd_compress.cli import advise, bench, build_horovod, compare, doctor, lgc_train, listing, redistribute
from hvd_compress.cli.output import console

EXIT_CODES = (
    "Exit status: 0 all is well; 1 something does not work or is missing; 2 wrong usage; 3 (advise) do not compress."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Gradient compression for Horovod: check the environment, time compressors, predict step times, compare runs.",
    epilog=EXIT_CODES,
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        console().print(f"hvd-compress {hvd_compress.__version__}")
        raise typer.Exit


def subcommand(name: str, function: Callable[..., None], exit_status: str) -> None:
    """Add a command; its help is the function's docstring, whose paragraphs are as wide as the screen."""
    paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")
    app.command(name, help=paragraphs, epilog=exit_status)(function)


subcommand("doctor", doctor.doctor, doctor.EXIT_STATUS)
subcommand("build-horovod", build_horovod.build_horovod, build_horovod.EXIT_STATUS)
subcommand("list", listing.list_, listing.EXIT_STATUS)
subcommand("bench", bench.bench, bench.EXIT_STATUS)
subcommand("advise", advise.advise, advise.EXIT_STATUS)
subcommand("lgc-train", lgc_train.lgc_train, lgc_train.EXIT_STATUS)
subcommand("redistribute", redistribute.redistribute, redistribute.EXIT_STATUS)
subcommand("compare", compare.compare, compare.EXIT_STATUS)
