"""The program of every rank: runs the scenarios that the process of the tests asks for, and says what went wrong.

mpirun -np 2 python -m tests.ranks.serve SOCKET torch
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import select
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Client, Connection
from pathlib import Path


def end_with(tests: Connection) -> None:
    """End this process, whatever it does, when the process of the tests ends."""
    peer = select.poll()
    peer.register(tests, 0)  # a hang-up is reported without being asked for
    peer.poll()
    os._exit(1)


def main(address: str, framework: str) -> None:
    """Answer until told to end."""
    faulthandler.enable()
    stacks = Path(address).with_name(f"{os.getpid()}.stacks")
    with stacks.open("w") as file, Client(address, family="AF_UNIX") as tests:
        faulthandler.register(signal.SIGUSR1, file)  # so that a hang shows where it is
        threading.Thread(target=end_with, args=(tests,), daemon=True).start()
        tests.send(os.getpid())
        session = importlib.import_module(f"tests.ranks.{framework}.session")
        tests.send(session.begin())
        while True:
            order = tests.recv()
            if order is None:
                return
            module, name, arguments = order
            problem = ""
            try:
                getattr(importlib.import_module(module), name)(*arguments)
            except BaseException:
                problem = traceback.format_exc()
            tests.send(problem)
            session.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
