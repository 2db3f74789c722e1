"""What ``Auto`` chooses from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hvd_compress import registry
from hvd_compress.algorithms.dense import Dense
from hvd_compress.algorithms.half import Half
from hvd_compress.algorithms.maxnorm import QSGDMaxNorm
from hvd_compress.algorithms.sidco import SIDCo
from hvd_compress.compressor import Compressor
from hvd_compress.phased import PhasedCompressor, phases
from hvd_compress.sparsifier import ALL_GATHER, Sparsifier

COMMON = tuple(field.name for field in dataclasses.fields(Compressor))
"""Arguments that every compressor has; those of ``Auto`` hold for its candidates."""

ACCURACIES = ("strict", "safe", "fast")


def by_accuracy(accuracy: str, workers: int) -> list[Compressor]:
    """Return the candidates for so many workers, from the mildest to the strongest; see ``Auto``.

    Not those that receive more than uncompressed: what is all-gathered grows with the number of workers.
    """
    found: list[tuple[str, Compressor, float]] = [
        ("strict", Dense(), float("inf")),
        ("strict", Half(), 4),
        ("safe", QSGDMaxNorm(8), float("inf")),
        ("fast", QSGDMaxNorm(4), float("inf")),
        ("safe", SIDCo(0.01), 107),
        ("fast", SIDCo(0.001), 1067),
    ]
    allowed = ACCURACIES[: ACCURACIES.index(accuracy) + 1]
    return [compressor for needs, compressor, most in found if needs in allowed and workers <= most]


def checked(given: Any) -> tuple[Compressor, ...]:
    """Return the candidates that a user named: compressors, their configurations or their names, each as a copy.

    Raises:
        TypeError, ValueError: it is not a list of compressors that ``Auto`` can choose from.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(f"candidates must be a list of compressors, got {given!r}")
    if not given:
        raise ValueError("candidates must be at least one compressor, got none")
    return tuple(map(_checked, given))


def _checked(candidate: Any) -> Compressor:
    if isinstance(candidate, (str, Mapping)):
        candidate = registry.from_config(candidate)
    if not isinstance(candidate, Compressor):
        raise TypeError(f"candidates must be compressors, got {candidate!r}")
    if isinstance(candidate, Sparsifier) and candidate.aggregate != ALL_GATHER:
        raise ValueError(f"{candidate!r} cannot be a candidate: Auto times all-gathered entries; use it without Auto")
    asks = candidate.mean_momentum() is not None or phases(candidate).asks_for_nodes
    if asks or candidate.memory_unit != "gradient":
        raise ValueError(f"{candidate!r} cannot be a candidate: it does more than an exchange; use it without Auto")
    if isinstance(candidate, PhasedCompressor) and not candidate.steady:
        raise ValueError(
            f"{candidate!r} cannot be a candidate: its own steps change from phase to phase, so that no few of them "
            "tell what it costs"
        )
    made = type(candidate).new_memory
    if candidate.error_feedback and (made is not Compressor.new_memory or not candidate.can_flush):
        raise ValueError(
            f"{candidate!r} cannot be a candidate: what it remembers is not the plain rest of error feedback, which "
            "can be sent by itself before another compressor goes on; use it without Auto"
        )
    for name in COMMON:
        value, default = getattr(candidate, name), Compressor.parameters()[name]
        if value != default:
            raise ValueError(f"give {name}={value!r} to Auto itself, not to the candidate {candidate!r}")
    return copy.copy(candidate)
