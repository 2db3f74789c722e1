"""The program of every rank: runs the scenarios that the process of the tests asks for, and says what went wrong.

mpirun -np 2 python -m tests.ranks.serve SOCKET torch
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import traceback
from multiprocessing.connection import Client
from pathlib import Path


def main(address: str, framework: str) -> None:
    """Answer until told to end, or until nobody is there to ask."""
    faulthandler.enable()
    stacks = Path(address).with_name(f"{os.getpid()}.stacks")
    with stacks.open("w") as file, Client(address, family="AF_UNIX") as tests:
        faulthandler.register(signal.SIGUSR1, file)  # so that a hang shows where it is
        tests.send(os.getpid())
        session = importlib.import_module(f"tests.ranks.{framework}.session")
        tests.send(session.begin())
        while True:
            try:
                order = tests.recv()
            except EOFError:
                return
            if order is None:
                return
            module, name, arguments, limit = order
            faulthandler.dump_traceback_later(2 * limit, exit=True)  # should nobody be there to end it
            problem = ""
            try:
                getattr(importlib.import_module(module), name)(*arguments)
            except BaseException:
                problem = traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            tests.send(problem)
            session.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
