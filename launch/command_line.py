"""The command line of the launchers here: options, and the program to run after ``--``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the program. Exits with status 2, as argparse does, if something is wrong with them."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, unknown = parser.parse_known_args(arguments[:end])
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)} (the program comes after --)")
    command = arguments[end + 1 :]
    if not command:
        parser.error("nothing to run: the program comes after --")
    return options, command
