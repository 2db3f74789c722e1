"""Tables on narrow screens, and what a launcher's ranks print."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from hvd_compress.cli import output
from tests.cli.recorded import write

NUMBERS = [f"{1000 * i:,}.5 ms" for i in range(1, 9)]


def wide() -> Table:
    table = Table(title="title", caption="caption")
    table.add_column("candidate")
    for i in range(8):
        table.add_column(f"phase {i}", justify="right", no_wrap=True)
    table.add_row("Horovod uncompressed", *NUMBERS)
    return table


def shown(width: int) -> tuple[int, str]:
    out = Console(width=width, file=io.StringIO())
    parts = output.parts(wide(), out)
    for part in parts:
        out.print(part)
    return len(parts), out.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "parts"), [(150, 1), (80, 2), (60, 4), (45, 8)])
def test_numbers_are_never_cut(width: int, parts: int) -> None:
    """What does not fit is printed in several tables, each with the first column."""
    count, text = shown(width)
    assert count == parts
    assert text.count("title") == text.count("caption") == 1
    if width >= 30:
        assert all(number in text for number in NUMBERS)
        assert "…" not in text
        assert text.count("Horovod") == parts
        assert max(len(line) for line in text.splitlines()) <= width


def test_a_narrow_table_stays_what_it_is() -> None:
    table = Table("only")
    table.add_row("x")
    (part,) = output.parts(table, Console(width=80))
    assert list(part.columns[0].cells) == ["x"]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What ``hvd-compress`` prints to a terminal of 80 columns."""
    master, slave = pty.openpty()
    environ = {key: value for key, value in os.environ.items() if key not in (*output.RANKS, "COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "hvd_compress.cli", *arguments],
        stdout=slave,
        env={**environ, "TERM": "xterm", **environment},
    )
    os.close(slave)
    text = b""
    while True:
        try:
            more = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        text += more
    assert process.wait() == 0
    return text.decode()


@pytest.fixture
def records(tmp_path: Path) -> str:
    """A folder of which ``hvd-compress compare`` makes a table of ten columns."""
    write(tmp_path / "none.json", "Horovod uncompressed", 1_373_288)
    write(tmp_path / "sidco.json", "SIDCo 0.01", 34_700)
    return str(tmp_path)


def test_a_terminal_of_80_columns_gets_tables_that_fit(records: str) -> None:
    text = on_a_terminal("compare", records)
    assert "\x1b[" in text
    assert "…" not in text
    assert "decompress" in text
    assert text.count("SIDCo 0.01") == 2


def test_a_launcher_s_pseudo_terminal_is_no_screen(records: str) -> None:
    """mpirun's ranks have one of 80 columns: what they print goes to a file as often as not."""
    text = on_a_terminal("compare", records, OMPI_COMM_WORLD_RANK="0")
    assert "\x1b[" not in text
    assert text.count("SIDCo 0.01") == 1
    assert max(len(line) for line in text.splitlines()) > 90
