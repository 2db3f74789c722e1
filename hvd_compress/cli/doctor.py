"""``hvd-compress doctor``: what is there and works, and what to do about what does not."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape

from hvd_compress.cli import examination
from hvd_compress.cli.finding import BROKEN, NOTE, OK
from hvd_compress.cli.output import Json, console, messages, print_json

EXIT_STATUS = "Exit status: 0 all is well (notes do not count); 1 something does not work; 2 wrong usage."


class Framework(StrEnum):
    """A framework under which an exchange can be tried."""

    torch = "torch"
    tensorflow = "tensorflow"


def doctor(
    framework: Annotated[
        list[Framework] | None,
        typer.Option(help="Try exchanges under this framework only. This option may be repeated."),
    ] = None,
    exchange: Annotated[
        bool, typer.Option(help="Try exchanges between two ranks, which take some seconds each.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Give up an exchange after this number of seconds.")] = 120,
    json_: Json = False,
) -> None:
    """Check the environment, and say what to do about anything that does not work.

    It looks at the frameworks, Horovod, MPI, the kernels and the GPU, and makes two ranks on this machine exchange a
    compressed gradient, with mpirun and with horovodrun --gloo.
    """
    out, found = console(), []
    colours = {OK: "green", NOTE: "yellow", BROKEN: "red"}
    names = [chosen.value for chosen in framework or list(Framework)]
    with messages().status("...") as status:
        for finding in examination.examine(
            names, exchange=exchange, limit=timeout, say=lambda what: status.update(f"{what} ...")
        ):
            found.append(finding)
            if not json_:
                mark = f"[{colours[finding.status]}]{finding.status:7}[/]"
                out.print(f"{mark}{finding.name}: {escape(finding.detail)}", soft_wrap=True)
                if finding.advice:
                    out.print(f"       → {escape(finding.advice)}", soft_wrap=True)
    broken = sum(finding.status == BROKEN for finding in found)
    if json_:
        print_json({"works": not broken, "findings": [vars(finding) for finding in found]})
    else:
        out.print(f"{broken} of {len(found)} do not work" if broken else "all is well")
    if broken:
        raise typer.Exit(1)
