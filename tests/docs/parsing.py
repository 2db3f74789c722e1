"""Gives scripts their arguments and lets only their own parser have them: ``python parsing.py < COMMANDS``.

Standard input: a JSON list of lists, a script and its arguments. Last line of standard output: a list of what was
wrong with each (nothing: an empty string).
"""

import argparse
import io
import json
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


class Parsed(BaseException):
    """The parser is content; the script shall not begin."""


def only_parse(parser: argparse.ArgumentParser, arguments: object = None, namespace: object = None) -> None:
    found, unknown = parser.parse_known_args(arguments, namespace)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    raise Parsed(found)


def outcome(script: str, arguments: list[str]) -> str:
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # where a script's neighbours are
    errors = io.StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(io.StringIO()):
            runpy.run_path(script, run_name="__main__")
    except Parsed as parsed:
        (found,) = parsed.args
        if script.startswith("examples/train_"):
            import flags

            try:
                flags.compression_of(found.compression, found.ratio, found.settings)
            except (TypeError, ValueError, FileNotFoundError) as error:
                return str(error)
        return ""
    except SystemExit:
        return errors.getvalue() or "it ended"
    return "it has no parser"


if __name__ == "__main__":
    argparse.ArgumentParser.parse_args = only_parse
    outcomes = [outcome(script, arguments) for script, *arguments in json.load(sys.stdin)]
    sys.stdout.write("\n" + json.dumps(outcomes))
