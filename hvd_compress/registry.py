"""Compressors by name: the built-in ones, third parties' through the entry-point group, and any class by its place."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvd_compress.compressor import Compressor
from hvd_compress.validation import nearest, reject_unknown, shown

GROUP = "hvd_compress.compressors"
"""Entry-point group: ``name = "package.module:Class"``."""

BUILT_IN = {
    "auto": "hvd_compress.auto.compressor:Auto",
    "dense": "hvd_compress.algorithms.dense:Dense",
    "half": "hvd_compress.algorithms.half:Half",
    "topk": "hvd_compress.algorithms.topk:TopK",
    "dgc": "hvd_compress.algorithms.dgc:DGC",
    "shared-topk": "hvd_compress.algorithms.shared_topk:SharedTopK",
    "sidco": "hvd_compress.algorithms.sidco:SIDCo",
    "qsgd-maxnorm": "hvd_compress.algorithms.maxnorm:QSGDMaxNorm",
    "qsgd-maxnorm-multiscale": "hvd_compress.algorithms.maxnorm:QSGDMaxNormMultiScale",
    "randk-maxnorm": "hvd_compress.algorithms.maxnorm:RandKMaxNorm",
    "randk-maxnorm-multiscale": "hvd_compress.algorithms.maxnorm:RandKMaxNormMultiScale",
    "fft": "hvd_compress.algorithms.fft:FFT",
    "lgc": "hvd_compress.lgc.compressor:LGC",
    "terngrad": "hvd_compress.algorithms.terngrad:TernGrad",
    "two-level": "hvd_compress.two_level:TwoLevel",
}


def names() -> list[str]:
    """Return the names of all compressors, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in importlib.metadata.entry_points(group=GROUP))})


def get(name: str) -> type[Compressor]:
    """Return the class called ``name``, or the one that is at ``package.module:Class``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        cls: type[Compressor] = getattr(importlib.import_module(module), attribute)
        return cls
    if ":" in name:
        return _at(name)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
    raise ValueError(f"unknown compressor {shown(name)}{nearest(name, names())}; there are {', '.join(names())}")


def _at(place: str) -> type[Compressor]:
    """Return the compressor at ``package.module:Class``.

    Raises:
        ValueError: there is no such module or class, its name is relative, or it is no compressor.
    """
    module, _, attribute = place.partition(":")
    if module.startswith("."):
        raise ValueError(
            f"compressor {shown(place)} (MODULE:CLASS): write the module's whole name, as package.module; "
            "there is no package that a leading dot could stand for"
        )
    try:
        found: Any = importlib.import_module(module) if module else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        raise ValueError(
            f"compressor {shown(place)}: there is no module {error.name}; "
            "it must be installed, or its folder in PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Compressor):
        return found
    what = "there is no such class" if found is None else f"{found!r:.100} is not a class derived from Compressor"
    raise ValueError(f"compressor {shown(place)} (MODULE:CLASS): {what}")


def from_config(config: str | Path | Mapping[str, Any], **arguments: Any) -> Compressor:
    """Build a compressor from a dict, a YAML file's path, a compressor's name, or a class's ``module:Class``.

    A configuration has the key ``name`` and the compressor's arguments; ``arguments`` are added to it, and replace what
    it has. ``Compressor.to_config`` inverts this for classes that are registered by their ``name``, or declare none.

    >>> from_config({"name": "topk", "ratio": 0.02})
    TopK(ratio=0.02)
    >>> from_config("topk", ratio=0.02)
    TopK(ratio=0.02)

    Raises:
        FileNotFoundError: no such file, and no compressor of that name.
        TypeError, ValueError: the configuration is not one; the message names the file, and the key and the nearest
            valid one.
    """
    if isinstance(config, (str, Path)):
        path = Path(config)
        if isinstance(config, str) and path.suffix not in (".yaml", ".yml") and not path.is_file():
            return _made({"name": config}, arguments, "the configuration")
        from hvd_compress.yaml_files import read_yaml  # which imports yaml

        try:
            return _made(read_yaml(path), arguments, str(path))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return _made(config, arguments, "the configuration")


def _made(config: Any, more: Mapping[str, Any], source: str) -> Compressor:
    """Return the compressor of a configuration with ``more`` arguments; ``source`` says where it comes from."""
    if not isinstance(config, Mapping):
        raise TypeError(f"{source} must be a mapping with the key 'name', got {type(config).__name__}")
    arguments = {**config, **more}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{source} needs the key 'name': one of {', '.join(names())}")
    cls = get(name)
    reject_unknown(arguments, cls.parameters(), f"compressor {name!r}")
    return cls(**arguments)
