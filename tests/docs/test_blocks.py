"""Every code block of README.md and docs/ runs here, or in the test named below, or is checked as said below.

- Python with prompts: doctests, which pytest collects from the pages themselves.
- Python without: run on two ranks, each with what its page takes for granted (tests/ranks/*/pages.py).
- The five-minute starts: saved as train.py and run by two ranks.
- Commands: see ``how``. What takes minutes, root, or a cluster is not run, but its options go through its real parser.
- YAML and TOML: parsed; a compressor's configuration is made into one.
- ``text``: what a program printed, or a layout; not tested.

A block or command that is of no known kind fails: say here how it is to be tested.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

import hvd_compress
from hvd_compress.cli.app import app
from tests.docs.blocks import ROOT, Block, Command, blocks, commands
from tests.ranks import programs
from tests.ranks.launching import launch
from tests.ranks.scenario import Job
from tests.ranks.server import Server

BLOCKS = blocks()
COMMANDS = [command for block in BLOCKS if block.language in {"sh", "console"} for command in commands(block)]
STARTS = {"docs/start-pytorch.md": "torch", "docs/start-tensorflow.md": "tensorflow"}
OUTPUT = {
    "docs/command-line.md": "broken 2 ranks, PyTorch, mpirun: mpirun has detected an attempt to run as root.",
}
"""Blocks without a language are what a program printed: their first lines."""
TINY = [
    "--data",
    "digits",
    "--train-limit",
    "512",
    "--epochs",
    "1",
    "--model",
    "mlp",
    "--width",
    "64",
    "--threads",
    "1",
]
"""What makes a training of the examples take seconds; later flags win."""
REAL = "README.md"
"""The page whose training with PyTorch is really run; tests/examples has others, under both frameworks."""


def doctest(block: Block) -> bool:
    return block.language == "python" and block.text.lstrip().startswith(">>> ")


def framework(block: Block) -> str:
    """The framework whose ranks run a Python block."""
    return "tensorflow" if block.page == "docs/tensorflow.md" else "torch"


KERAS_3 = "variables = [variable.value for variable in model.trainable_variables]"
"""The first line of the block that needs Keras 3: what it shows is run by tests/ranks/tensorflow/keras3.py."""
PYTHON = [
    block
    for block in BLOCKS
    if block.language == "python" and not doctest(block) and block.page not in STARTS and block.first != KERAS_3
]


def test_every_block_is_of_a_known_kind() -> None:
    for block in BLOCKS:
        known = {"python", "sh", "console", "yaml", "toml", "text"}
        if block.language not in known:
            assert OUTPUT.get(block.page) == block.first, (
                f"{block} ({block.language or 'no language'}): say how to test it"
            )
    assert len([block for block in BLOCKS if doctest(block)]) >= 7
    assert len(PYTHON) >= 15
    assert len(COMMANDS) >= 30


def test_what_the_block_for_keras_3_shows_is_run() -> None:
    (block,) = [block for block in BLOCKS if block.first == KERAS_3]
    compile(block.text, str(block), "exec")
    program = (ROOT / "tests" / "ranks" / "tensorflow" / "keras3.py").read_text(encoding="utf-8")
    broadcast = "hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)"
    for line in (
        broadcast,
        "[variable.value for variable in model.trainable_variables]",
        "hvd.DistributedGradientTape(",
    ):
        assert line in block.text
        assert line in program


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those between the pages of docs/ are ``mkdocs build --strict``'s business."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_pages_with_prompts_are_doctests() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert {"docs", "README.md"} <= set(options["testpaths"])
    assert "--doctest-glob=*.md" in options["addopts"].split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the repository, to run examples in."""
    for name in ("configs", "examples", "launch", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.multiprocess
@pytest.mark.parametrize("job", [Job("torch", "mpirun", 2), Job("tensorflow", "mpirun", 2)], ids=str)
def test_python(server: Server, job: Job, folder: Path) -> None:
    pytest.importorskip(f"horovod.{job.framework}")
    chosen = [(str(block), block.text) for block in PYTHON if framework(block) == job.framework]
    (folder / "blocks.json").write_text(json.dumps(chosen))
    server.call(job, import_module(f"tests.ranks.{job.framework}.pages").run_blocks, str(folder))
    for rank in range(job.ranks):
        assert (folder / f"{rank}.ran").read_text().splitlines() == [where for where, _ in chosen]


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("page", "job"), [(page, Job(framework, "mpirun", 2)) for page, framework in STARTS.items()], ids=str
)
def test_start(server: Server, job: Job, page: str, tmp_path: Path) -> None:
    pytest.importorskip(f"horovod.{job.framework}")
    lines = [command.words for command in COMMANDS if command.block.page == page and command.words[-1] == "train.py"]
    assert lines == [(launcher, "-np", "2", "python", "train.py") for launcher in ("horovodrun", "mpirun")]
    (block,) = [block for block in BLOCKS if block.page == page and block.language == "python"]
    (tmp_path / "train.py").write_text(block.text)
    done = programs.run(server, job, tmp_path / "train.py", folder=tmp_path)
    assert done.status == 0, done.said
    (found,) = re.findall(r"loss (\d\.\d+); sent ([\d,]+) bytes, (\d+) times less", done.said)
    assert float(found[0]) < 1.0
    assert int(found[1].replace(",", "")) > 0
    assert int(found[2]) > 20


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in {"yaml", "toml"}], ids=str)
def test_data(block: Block) -> None:
    content: Any = tomllib.loads(block.text) if block.language == "toml" else yaml.safe_load(block.text)
    assert isinstance(content, dict)
    if "name" in content:
        hvd_compress.from_config(content)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_shell_understands(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Commands


def program_of(words: Sequence[str]) -> list[str]:
    """The script and its arguments behind a launcher."""
    program = list(words)
    assert program[0] == "python", shlex.join(words)
    return program[1:]


def how(command: Command) -> tuple[str, list[str]]:
    """How a command is tested, and the script with arguments in it (or none):

    - ``run``: as it is, in a folder of its own;
    - ``train``: on two ranks, cut short;
    - ``start``: by test_start; ``console``: by tests/cli/test_docs.py;
    - ``dry-run``: with that option of its own;
    - ``parse``: options only, by its own parser: it takes minutes, or another machine;
    - ``look``: only whether what it names is there: it builds, installs, or needs a cluster.
    """
    words = list(command.words)
    page, first = command.block.page, words[0]
    if first in {"mpirun", "horovodrun"}:
        assert words[1] == "-np", command
        assert words[2].isdecimal(), command
        if page in STARTS and words[3:] == ["python", "train.py"]:
            return "start", []
        program = program_of(words[3:])
        return ("train" if page == REAL and program[0] == "examples/train_torch.py" else "parse"), program
    if first in {"launch/mpirun.sh", "launch/horovodrun.sh", "launch/emulate.sh"}:
        program = words[words.index("--") + 1 :]
        return "dry-run", [] if program == ["true"] else program_of(program)
    if first == "sbatch":
        at = words.index("launch/slurm.sbatch")
        for option in words[1:at]:
            assert re.fullmatch(r"--(nodes|ntasks-per-node|cpus-per-task)=\d+", option), command
        return "parse", program_of(words[at + 1 :])
    if first == "python":
        return "parse", program_of(words)
    if first == "hvd-compress":
        if page == "docs/command-line.md" and command.block.language == "console":
            return "console", []
        return ("run" if words[1] == "list" else "parse"), []
    if words == [".", "launch/env.sh"]:
        return "run", []
    if first in {"make", "pip", "docker", "kubectl", "tensorboard", "git", "cd"} or first.startswith(
        ("launch/", "tools/")
    ):
        return "look", []
    raise AssertionError(f"{command}: say how to test it")


def test_commands_are_tested_as_said() -> None:
    kinds = [how(command)[0] for command in COMMANDS]
    assert {kind: kinds.count(kind) > 0 for kind in ("run", "train", "start", "console", "dry-run", "parse", "look")}
    assert kinds.count("train") == 1


@pytest.mark.parametrize("command", [c for c in COMMANDS if how(c)[0] == "run"], ids=str)
def test_run(command: Command, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", shlex.join(command.words)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize("command", [c for c in COMMANDS if how(c)[0] == "train"], ids=str)
def test_train(command: Command, folder: Path) -> None:
    """With a launcher as it stands there, cut short."""
    launcher, np, number, python, *program = command.words
    assert (np, number, python) == ("-np", "2", "python")
    done = launch(launcher, 2, [*program, *TINY], folder=folder, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "epoch 1/1: test accuracy" in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if how(c)[0] == "dry-run"], ids=str)
def test_dry_run(command: Command) -> None:
    words = list(command.words)
    if "--dry-run" not in words:
        words.insert(1, "--dry-run")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shown = shlex.join(how(command)[1])
    assert shown in done.stdout or shlex.quote(shown)[1:-1] in done.stdout  # as it is, or within quotes


WRONG = {
    ("examples/train_torch.py", "--epoch", "3"): "unrecognized arguments: --epoch 3",
    ("examples/train_torch.py", "--compression", "sidko"): "did you mean 'sidco'",
}
"""Commands as nobody should find them in the docs, and what is said of them."""


@pytest.fixture(scope="module")
def parsed() -> dict[tuple[str, ...], str]:
    """What the scripts' own parsers object to the arguments, all in one process: imports take their time."""
    chosen = [*{tuple(how(command)[1]) for command in COMMANDS if how(command)[1]}, *WRONG]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("parsing.py"))],
        cwd=ROOT,
        input=json.dumps(chosen),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(chosen, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.multiprocess
@pytest.mark.parametrize("command", [c for c in COMMANDS if how(c)[1]], ids=str)
def test_options_of_programs(command: Command, parsed: dict[tuple[str, ...], str]) -> None:
    assert parsed[tuple(how(command)[1])] == ""


@pytest.mark.multiprocess
def test_wrong_options_are_seen(parsed: dict[tuple[str, ...], str]) -> None:
    for words, message in WRONG.items():
        assert message in parsed[words]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "hvd-compress"], ids=str)
def test_options_of_the_command(command: Command) -> None:
    group: Any = typer.main.get_command(app)
    _, name, *arguments = [word for word in command.words if word not in {">", "<"}]
    assert name in group.commands
    group.commands[name].make_context(name, arguments)  # raises what the user would be told


@pytest.mark.parametrize("command", [c for c in COMMANDS if how(c)[0] == "look"], ids=str)
def test_what_is_named_is_there(command: Command) -> None:
    first, *rest = command.words
    if first == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif first == "pip":
        assert rest[0] == "install"
        for package in rest[1:]:
            if not package.startswith((".", "hvd-compress[")):
                importlib.metadata.version(Requirement(package).name)
    elif first in {"docker", "kubectl"}:
        files = [rest[at + 1] for at, word in enumerate(rest) if word == "-f"]
        assert all((ROOT / file).is_file() for file in files)
        names = re.findall(r"^  name: (\S+)$", (ROOT / "launch/kubernetes/mpijob.yaml").read_text(), re.MULTILINE)
        assert all(word == f"job/{names[0]}-launcher" for word in rest if word.startswith("job/"))
    elif first == "tensorboard":
        assert shutil.which(first)
    elif first.startswith(("launch/", "tools/")):
        assert os.access(ROOT / first, os.X_OK)
