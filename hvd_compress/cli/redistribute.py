"""``hvd-compress redistribute``: saved states of N ranks, made into those of M ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hvd_compress.cli.output import Json, console, fail, print_json
from hvd_compress.elastic import redistribute as redistributed
from hvd_compress.files import write_whole
from hvd_compress.state_files import read_npz, write_npz

EXIT_STATUS = "Exit status: 0 done; 1 PyTorch is missing; 2 wrong usage, or files that are not the states of one job."


def redistribute(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Read the states of all ranks from these files, in the order of the ranks."
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Make states for this number of ranks.")],
    out: Annotated[
        str, typer.Option(metavar="PATTERN", help="Write files with these names; {rank} stands for the rank.")
    ],
    json_: Json = False,
) -> None:
    """Turn the saved states of a job into states for another number of ranks.

    The files are those that torch.save wrote of compression.state_dict() on every rank, or, under TensorFlow, the .npz
    files of CompressionCheckpoint or save_state. Nothing that was held back is lost: the sum over the ranks stays what
    it is.
    """
    if "{rank}" not in out:
        fail(f"--out must have {{rank}} in it, got {out}")
    targets = [Path(out.replace("{rank}", str(rank))) for rank in range(workers)]
    sources = {path.resolve() for path in files}
    if written_over := [str(target) for target in targets if target.resolve() in sources]:
        # one by one: what is interrupted would leave states of two numbers of ranks, and what is over would stay
        fail(f"--out would write over {', '.join(written_over)}: write to other names, or to another folder")
    kinds = {path.suffix == ".npz" for path in (*files, *targets)}
    if len(kinds) > 1:
        fail("of the files and --out some end in .npz, which are TensorFlow's, and some do not")
    try:
        read, write = _npz() if kinds == {True} else _pytorch()
    except ImportError as error:
        fail(f"{error}: files that do not end in .npz are PyTorch's", 1)
    try:
        for target, state in zip(targets, redistributed([read(path) for path in files], workers), strict=True):
            write(state, target)
    except (OSError, TypeError, ValueError) as error:
        fail(error)
    _tell(files, targets, json_)


Files = tuple[Callable[[Path], Any], Callable[[Any, Path], None]]
"""What reads a state from a file, and what writes one to a file."""


def _npz() -> Files:
    return read_npz, write_npz


def _pytorch() -> Files:
    import torch

    def read(path: Path) -> Any:
        """Return what is in a file. Raise ValueError that names it, if it is not PyTorch's."""
        try:
            return torch.load(path, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # whatever other files make PyTorch raise
            raise ValueError(f"{path} is not a file of PyTorch's, or not whole: {error}") from error

    return read, lambda state, path: write_whole(path, partial(torch.save, state))


def _tell(files: Sequence[Path], targets: Sequence[Path], json_: bool) -> None:
    if json_:
        print_json({"from": [str(path) for path in files], "to": [str(path) for path in targets]})
        return
    for target in targets:
        console().print(f"state: {target}", soft_wrap=True)
