"""Files that are written whole or not at all: whatever happens meanwhile, the one that was there before stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def check_writable(path: Path) -> None:
    """Make the folder of a file that will be written later, and raise OSError now if it cannot be written there."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file, and is a folder")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written: its folder cannot be made: {error}") from error
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: its folder is read-only")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have ``write`` fill a new file beside ``path``, and put it in its place when it is on the disk.

    Raises:
        OSError: it could not be written: the disk is full, say. The file that was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # some file systems find room for it only now
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
