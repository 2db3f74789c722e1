"""Which tests are collected, and which of them run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

collect_ignore = [
    "hvd_compress/drivers/mpi.py",  # starts MPI when imported: no mpirun would work below the process of the tests
]
if importlib.util.find_spec("triton") is None:
    collect_ignore.append("hvd_compress/kernels/device")
# Triton decides when its programs are imported whether it interprets them. On a GPU: TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests that are marked long, and no others")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen: bool = config.getoption("long")
    others = [item for item in items if (item.get_closest_marker("long") is not None) != chosen]
    items[:] = [item for item in items if (item.get_closest_marker("long") is not None) == chosen]
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    if not terminalreporter.config.getoption("long"):
        terminalreporter.write_line("long tests were left out: make test-long")
