"""The command and its subcommands, each of which is in a module of its own."""

from __future__ import annotations

from typing import Annotated

import typer

import hvd_compress
from hvd_compress.cli import advise, bench, compare, doctor, lgc_train, listing
from hvd_compress.cli.output import console

EXIT_CODES = (
    "Exit status: 0 all is well; 1 something does not work or is missing; 2 wrong usage; 3 (advise) do not compress."
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gradient compression for Horovod: what is there, what it costs, what it does to a training.",
    epilog=EXIT_CODES,
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        console().print(f"hvd-compress {hvd_compress.__version__}")
        raise typer.Exit


app.command("doctor", epilog=doctor.EXIT_STATUS)(doctor.doctor)
app.command("list", epilog=listing.EXIT_STATUS)(listing.list_)
app.command("bench", epilog=bench.EXIT_STATUS)(bench.bench)
app.command("advise", epilog=advise.EXIT_STATUS)(advise.advise)
app.command("lgc-train", epilog=lgc_train.EXIT_STATUS)(lgc_train.lgc_train)
app.command("compare", epilog=compare.EXIT_STATUS)(compare.compare)
