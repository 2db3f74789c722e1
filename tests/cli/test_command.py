"""The command as such: what it loads, what it says without its libraries, its help and its exit codes."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import hvd_compress.cli

Command = Callable[..., subprocess.CompletedProcess[str]]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_importing_loads_neither_frameworks_nor_the_command_line_s_own() -> None:
    done = python(
        "-c",
        "import sys, hvd_compress.cli, hvd_compress.cli.records\n"
        "print([m for m in ('torch', 'tensorflow', 'horovod', 'typer', 'rich', 'matplotlib') if m in sys.modules])\n"
        "import hvd_compress.cli.app\n"
        "print([m for m in ('torch', 'tensorflow', 'horovod', 'scipy', 'matplotlib') if m in sys.modules])\n",
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_it_says_what_to_install(hide: Callable[..., None], missing: str) -> None:
    hide(missing)
    done = python("-m", "hvd_compress.cli", "list")
    assert done.returncode == 1
    assert done.stderr == (
        f"hvd-compress needs {missing}, which is not installed: pip install 'hvd-compress[cli]', "
        "or in a checkout pip install '.[cli]'\n"
    )


def test_help_documents_the_exit_codes(command) -> None:
    assert "Exit status: 0 all is well; 1 something does not work" in " ".join(command("--help").out.split())
    for name in ("doctor", "list", "bench", "advise", "compare"):
        ran = command(name, "--help")
        assert ran.code == 0
        assert "Exit status: 0" in ran.out
        assert "--json" in ran.out


IMPERATIVE = re.compile(
    "(Assume|Build|Compare|Describe|Draw|Fill|Give|Let|Make|Measure|Print|Rank|Read|Run|Send|Time|Train|Try|Write) "
)


def test_help_is_whole_sentences_that_say_what_an_option_does() -> None:
    import typer

    from hvd_compress.cli.app import app

    group = typer.main.get_command(app)
    for name, one in group.commands.items():  # type: ignore[attr-defined]
        for parameter in one.params:
            text = getattr(parameter, "help", None)
            assert text, (name, parameter.name)
            assert IMPERATIVE.match(text), (name, parameter.name, text)
            assert text.endswith("."), (name, parameter.name, text)


@pytest.mark.parametrize(
    "arguments",
    [[], ["advise"], ["doctor", "--timeout", "0"], ["list", "--nope"], ["compare"], ["bench", "--rounds", "0"]],
)
def test_wrong_usage_is_2(command, arguments: list[str]) -> None:
    assert command(*arguments).code == 2


def test_it_is_installed_as_a_command() -> None:
    (point,) = metadata.entry_points(group="console_scripts", name="hvd-compress")
    assert point.load() is hvd_compress.cli.main


def test_version(command) -> None:
    assert command("--version").out == f"hvd-compress {hvd_compress.__version__}\n"


def test_modules_of_the_working_directory_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by the command, which unlike ``python -m`` does not look there by itself; what is installed comes first."""
    (tmp_path / "nearby.py").write_text("import hvd_compress\nclass Near(hvd_compress.TopK): pass\n")
    (tmp_path / "yaml.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["hvd-compress", "list", "nearby:Near"])
    with pytest.raises(SystemExit) as ended:
        hvd_compress.cli.main()
    assert ended.value.code == 0
    assert "nearby:Near" in capsys.readouterr().out


def test_the_shell_completes_it(monkeypatch: pytest.MonkeyPatch, command) -> None:
    monkeypatch.setenv("_HVD_COMPRESS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "hvd-compress b")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert command().out.split() == ["build-horovod", "bench"]
