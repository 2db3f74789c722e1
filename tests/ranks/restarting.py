"""Horovod is shut down and initialized again, under Gloo, for either framework."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_folders: list[TemporaryDirectory[str]] = []
"""Kept until the process ends: others may still look into them."""


def shut_down(hvd: Any) -> None:
    """Return when all ranks have shut down, none of which goes while another still hands gradients over.

    Gloo's server forgets a rank's address when the last one has gone: a rank that began anew before would be given an
    old one.
    """
    _folders.append(TemporaryDirectory())
    folder = Path(hvd.allgather_object(_folders[-1].name, name="all are here")[0])
    rank, size = hvd.rank(), hvd.size()
    hvd.shutdown()
    (folder / str(rank)).touch()
    while len(list(folder.iterdir())) < size:
        time.sleep(0.001)


def restart(hvd: Any) -> None:
    """Have Horovod begin anew on all ranks."""
    shut_down(hvd)
    hvd.init()
