"""docs/api.md describes every parameter of every compressor, inherited ones too."""

from __future__ import annotations

import inspect
import sys

import griffe

import hvd_compress
from tests.docs.blocks import ROOT

# isort: split
sys.path.insert(0, str(ROOT / "docs" / ".build"))
import compressors


def test_every_parameter_of_every_compressor_is_described() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    package = griffe.load("hvd_compress", search_paths=[ROOT], extensions=griffe.Extensions(compressors.Compressors()))
    checked = 0
    for name in hvd_compress.__all__:
        cls = getattr(hvd_compress, name)
        abstract = ("Compressor", "Selective", "Sparsifier", "PhasedCompressor")
        if not (inspect.isclass(cls) and issubclass(cls, hvd_compress.Compressor)) or name in abstract:
            continue
        assert f"::: hvd_compress.{name}\n" in page
        parsed = package[name].final_target.docstring.parse("google")
        described = [arg.name for part in parsed if part.kind.value == "parameters" for arg in part.value]
        assert set(described) == set(inspect.signature(cls).parameters), name
        checked += 1
    assert checked >= 15
