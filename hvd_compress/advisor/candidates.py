"""The compressors that are compared: those that are named, or all that can be made here and timed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hvd_compress import registry, schedules
from hvd_compress.advisor import configurations
from hvd_compress.compressor import Compressor
from hvd_compress.phased import PhasedCompressor

log = logging.getLogger(__name__)

LATE = 10**7
"""A step at which schedules have come to their end."""


def load(config: str | Path) -> Compressor:
    """Return the compressor that ``from_config`` makes of ``config``.

    Raises:
        ValueError: the compressor changes from phase to phase; or as ``from_config``.
        TypeError, OSError: as ``from_config``.
    """
    made = registry.from_config(config)
    if phased(made):
        raise ValueError(
            f"what {config} sends and costs changes from phase to phase: no single step of it can be timed"
        )
    return made


def phased(algorithm: Compressor) -> bool:
    """Return whether its steps change from phase to phase, so that no single one tells what it costs."""
    return isinstance(algorithm, PhasedCompressor) and not algorithm.steady


def for_advice(names: Iterable[str] | None = None) -> dict[str, Compressor]:
    """Return compressors by name, as they are once their schedules have come to their end.

    ``names`` are configurations that come with the package, registered compressors, or YAML files; by default all
    configurations, and the compressors that have none.

    Raises:
        ValueError, TypeError, OSError: as ``load``, of what was named.
    """
    files = configurations.files()
    if names is None:
        made = _available({name: files.get(name, name) for name in sorted({*files, *registry.names()})})
    else:
        made = {str(name): load(files.get(str(name), name)) for name in names}
    return {name: steady(algorithm) for name, algorithm in made.items()}


def served(algorithms: Mapping[str, Compressor], *, named: bool) -> dict[str, Compressor]:
    """Return the algorithms that compress on a device.

    Raises:
        ValueError: one that was ``named`` does not; names it.
    """
    others = [name for name, algorithm in algorithms.items() if not algorithm.runs_on_devices]
    if named and others:
        raise ValueError(f"{others[0]} does not compress on a device yet; leave --device out")
    return {name: algorithm for name, algorithm in algorithms.items() if name not in others}


def for_benchmark(names: Iterable[str] | None = None) -> dict[str, Compressor]:
    """Return compressors by what they are called in a table, their repr.

    ``names`` are registered compressors or YAML files; by default all registered ones.

    Raises:
        ValueError, TypeError, OSError: as ``load``, of what was named.
    """
    if names is None:
        made = list(_available({name: name for name in registry.names()}).values())
    else:
        made = [load(name) for name in names]
    return {repr(algorithm): algorithm for algorithm in made}


def steady(algorithm: Compressor) -> Compressor:
    """Return the compressor with the last value of every schedule."""
    changed: dict[str, Any] = {
        field.name: schedules.value_at(value, LATE)
        for field in dataclasses.fields(algorithm)
        if callable(value := getattr(algorithm, field.name))
    }
    return dataclasses.replace(algorithm, **changed)


def _available(configs: Mapping[str, str | Path]) -> dict[str, Compressor]:
    """Return those that can be made here with their defaults, and timed; the others are left out."""
    made = {}
    for name, config in configs.items():
        try:
            algorithm = registry.from_config(config)
        except Exception as error:  # whatever a third party's module raises when it is imported
            log.info("%s is left out: %s", name, error)
            continue
        if not phased(algorithm):
            made[name] = algorithm
    return made
