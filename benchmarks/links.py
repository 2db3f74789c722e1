"""The links of emulated hosts, changed by the ranks themselves; and Gloo on them, for torch's own data parallelism."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import horovod.torch as hvd
import torch.distributed as dist

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))
import emulate

DEVICE = "eth0"


def emulated() -> bool:
    """Whether this process is on a host of launch/emulate.sh: in a network namespace of the host's name."""
    if shutil.which("ip") is None or not emulate.PLACE.is_mount():
        return False
    found = subprocess.run(["ip", "netns", "identify"], capture_output=True, text=True, check=False)
    return found.stdout.strip() == socket.gethostname()


class Link:
    """This host's link. What leaves two hosts is limited at both ends, so nothing else needs to be."""

    def __init__(self) -> None:
        self._shaped = False

    def set(self, rate: str) -> None:
        """A rate as tc writes it, or ``unlimited``."""
        bits = emulate.parse_rate(rate)
        commands = emulate.unshape(DEVICE) if self._shaped else []
        if bits is not None:
            commands += emulate.shape(bits, DEVICE)
        for command in commands:
            subprocess.run(shlex.split(command), check=True, capture_output=True)
        self._shaped = bits is not None


def start_gloo() -> None:
    """Let the ranks of a Horovod job be those of torch.distributed, too."""
    host = "127.0.0.1"
    if emulated():
        os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
        host = socket.gethostname()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    host, port = hvd.broadcast_object((host, port), 0)
    dist.init_process_group("gloo", init_method=f"tcp://{host}:{port}", rank=hvd.rank(), world_size=hvd.size())
