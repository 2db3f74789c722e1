"""What docs/command-line.md shows is what happens."""

import doctest
import re
from pathlib import Path

import pytest

from hvd_compress.advisor.exchange_timing import TimedExchange
from hvd_compress.exchange import Collective
from tests.cli.recorded import write

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```console\n\$ hvd-compress ([^\n]*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_they_are_all_found() -> None:
    assert len(EXAMPLES) == TEXT.count("```console") == TEXT.count("$ hvd-compress") == 6


def shape(output: str) -> str:
    """Without what differs from run to run and from machine to machine: numbers, the widths of tables, processors."""
    output = re.sub(r"^processor: .*?, isa: \w+", "processor: P, isa: I", output, flags=re.MULTILINE)
    return re.sub(r"[━─]+", "━", re.sub(r"\d+(?:[\d.,]*\d)?", "0", output))


@pytest.mark.parametrize(("line", "expected"), EXAMPLES, ids=[line.split()[0] for line, _ in EXAMPLES])
def test_example(command, line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    same = {
        "model": {"name": "resnet", "parameters": 343_322},
        "data": {"name": "fashion-mnist", "note": ""},
    }
    write(tmp_path / "runs" / "none.json", "Horovod uncompressed", 1_373_288, **same)
    write(tmp_path / "runs" / "sidco.json", "SIDCo 0.01", 34_700, **same)
    if line.startswith("advise"):  # which ranks by what it has timed: that is not to be of a moment
        run = TimedExchange.run

        def timed(exchange: TimedExchange) -> tuple[list[Collective], list[float]]:
            collectives, seconds = run(exchange)
            return collectives, [0.005] * len(seconds)

        monkeypatch.setattr(TimedExchange, "run", timed)
    more = ["--rounds", "1"] if line.startswith(("bench", "advise")) else []
    ran = command(*line.split(), *more)
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(shape(expected), shape(ran.out), flags), ran.out


def test_the_exit_codes_are_those_of_the_help(command) -> None:
    table = re.findall(r"^\| (\d) \| `?(\w+)", TEXT, re.MULTILINE)
    assert table == [("0", "done"), ("1", "something"), ("2", "wrong"), ("3", "advise")]
    said = " ".join(command("--help").out.split())
    assert "0 all is well; 1 something does not work or is missing; 2 wrong usage; 3 (advise) do not compress" in said
