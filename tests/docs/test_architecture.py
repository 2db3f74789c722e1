"""Whatever docs/architecture.md and its picture name is where they say it is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.test_layers import LAYERS

PACKAGE = ROOT / "hvd_compress"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "pictures" / "architecture.svg").read_text(encoding="utf-8")
CODE = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
PLACED = sorted(set(re.findall(r"`([A-Za-z_][\w.]*)`\s+(?:in|of)\s+`([\w/]+\.py)`", TEXT)))
"""Names and the files they are in: ```Name` in `file.py```."""
PATHS = [code for code in CODE if re.fullmatch(r"[\w/.-]+(/|\.(py|pyi|cpp|md|yml))", code)]
COMMANDS = [code for code in CODE if code.split()[0] == "hvd-compress"]
HOROVOD = ["compression=", "hvd.allreduce"]
NAMES = [code.partition("=")[0] for code in CODE if code not in {*PATHS, *COMMANDS, *HOROVOD}]


def path_of(name: str) -> Path:
    """Return the file or folder: of the repository, or else of the package."""
    first = name.partition("/")[0]
    return (ROOT if name.endswith((".md", ".yml")) or (ROOT / first).is_dir() else PACKAGE) / name


def exists(name: str) -> bool:
    path = path_of(name)
    return path.is_dir() if name.endswith("/") else path.is_file()


@cache
def definitions(path: Path) -> dict[str, set[str]]:
    """Return what a module defines, and the members of its classes."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for name in names_of(node):
            found[name] = set()
        if isinstance(node, ast.ClassDef):
            found[node.name] = {name for inner in node.body for name in names_of(inner)}
    return found


def names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@cache
def introduced() -> dict[str, set[str]]:
    """Return the names that the page says the places of, and the members of the classes among them."""
    tops = [(name.partition(".")[0], file) for name, file in PLACED]
    return {top: definitions(path_of(file)).get(top, set()) for top, file in tops}


def test_much_is_found() -> None:
    assert len(PATHS) > 50
    assert len(PLACED) > 25
    assert len(NAMES) > 50
    assert len(COMMANDS) > 3


@pytest.mark.parametrize("name", PATHS)
def test_paths(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize(("name", "file"), PLACED)
def test_names_are_in_the_file_that_the_page_says(name: str, file: str) -> None:
    top, _, member = name.partition(".")
    assert top in definitions(path_of(file))
    assert not member or member in definitions(path_of(file))[top]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_where_a_name_is(name: str) -> None:
    """A class or function is named with its file somewhere on the page; members are those of such a class."""
    top, _, member = name.partition(".")
    if member:
        assert member in introduced()[top]
    else:
        assert name in introduced() or any(name in members for members in introduced().values())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str) -> None:
    _, *subcommand = command.split()
    listed = re.findall(
        r'^subcommand\("([\w-]+)"', (PACKAGE / "cli" / "app.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(subcommand) <= set(listed)


def test_layers_are_those_that_are_tested() -> None:
    table = TEXT.partition("## Layers")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    modules = [{name.removesuffix("/").removesuffix(".py").replace("__init__", "") for name in row} for row in rows]
    assert modules == [set(layer) for layer in reversed(LAYERS)]


def test_the_picture_names_what_exists() -> None:
    titles = re.findall(r'class="name"[^>]*>([^<]*)<', PICTURE)
    names = [name for title in titles for name in title.split(", ")]
    assert len(names) > 10
    assert [name for name in names if name not in ("Horovod", "the transport") and not exists(name)] == []


def test_the_picture_has_the_numbers_of_the_text() -> None:
    numbers = [int(number) for number in re.findall(r'class="number"[^>]*>(\d+)<', PICTURE)]
    steps = [int(number) for number in re.findall(r"^(\d+)\. \*\*", TEXT, re.MULTILINE)]
    assert sorted(numbers) == steps == list(range(1, len(steps) + 1))
    assert len(steps) == 10
