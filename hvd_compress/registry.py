"""Compressors by name: the built-in ones, and third parties' through the entry-point group."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvd_compress.validation import nearest, reject_unknown, shown

if TYPE_CHECKING:
    from hvd_compress.compressor import Compressor

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
    """Return the class called ``name``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        cls: type[Compressor] = getattr(importlib.import_module(module), attribute)
        return cls
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
    raise ValueError(f"unknown compressor {shown(name)}{nearest(name, names())}; there are {', '.join(names())}")


def from_config(config: str | Path | Mapping[str, Any]) -> Compressor:
    """Build a compressor from a dict, a YAML file's path, or a compressor's name.

    A configuration has the key ``name`` and the compressor's arguments. ``Compressor.to_config`` inverts this.

    >>> from_config({"name": "topk", "ratio": 0.02})
    TopK(ratio=0.02)

    Raises:
        FileNotFoundError: no such file, and no compressor of that name.
        TypeError, ValueError: the configuration is not one; the message names the file, and the key and the nearest
            valid one.
    """
    if isinstance(config, (str, Path)):
        path = Path(config)
        if isinstance(config, str) and path.suffix not in (".yaml", ".yml") and not path.is_file():
            return get(config)()
        from hvd_compress.yaml_files import read_yaml  # which imports yaml

        try:
            return _made(read_yaml(path), str(path))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return _made(config, "the configuration")


def _made(config: Any, source: str) -> Compressor:
    """Return the compressor of a configuration; ``source`` says in messages where it comes from."""
    if not isinstance(config, Mapping):
        raise TypeError(f"{source} must be a mapping with the key 'name', got {type(config).__name__}")
    arguments = dict(config)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{source} needs the key 'name': one of {', '.join(names())}")
    cls = get(name)
    reject_unknown(arguments, cls.parameters(), f"compressor {name!r}")
    return cls(**arguments)
