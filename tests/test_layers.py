"""Imports point one way: from the command line down to the kernels, and in no circle, lazy imports included."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hvd_compress"

LAYERS = [
    ("_version", "files", "validation", "yaml_files", "topology", "building"),
    ("kernels",),
    ("codecs",),
    (
        "memory",
        "shares",
        "momentum",
        "exchange",
        "schedules",
        "statistics",
        "state",
        "state_format",
        "state_files",
        "horovod_interface",
    ),
    ("compressor", "sparsifier", "phased"),
    ("algorithms", "lgc"),
    ("registry", "elastic", "two_level", "recording"),
    ("auto",),
    ("runtime",),
    ("drivers",),
    ("",),  # the package itself, which exports what is below
    ("advisor",),
    ("cli",),
]
"""From the lowest up. A module imports its own layer and those below; see docs/architecture.md."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """The package's modules that this one imports, wherever in its source, for types alone or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relative to itself"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return frozenset(name for name in found if name in MODULES and name != module)


def layer(module: str) -> int:
    top = module.partition(".")[2].partition(".")[0]
    (found,) = [number for number, names in enumerate(LAYERS) if top in names]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_above_it(module: str) -> None:
    assert [name for name in sorted(imports(module)) if layer(name) > layer(module)] == []


def test_no_circle() -> None:
    """Take away what imports nothing that is left, as long as there is such a module: none stays."""
    left = {module: set(imports(module)) for module in MODULES}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    while unused := left.keys() - set().union(*left.values()):
        for module in unused:
            del left[module]
    circle = {module: sorted(needs & left.keys()) for module, needs in left.items()}
    assert not circle, "\n".join(f"{module} -> {', '.join(needs)}" for module, needs in sorted(circle.items()))


def test_every_layer_has_modules() -> None:
    assert set(map(layer, MODULES)) == set(range(len(LAYERS)))
