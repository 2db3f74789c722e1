"""Checks of arguments and configurations: what is wrong raises an error that names the argument and the value.

Of gradients, whose values one worker alone knows, what is wrong is only said: an error would leave the others waiting.
"""

from __future__ import annotations

import difflib
import logging
import reprlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

_log = logging.getLogger(__name__)

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = _repr.maxdeque = 12
_repr.maxstring = _repr.maxlong = _repr.maxother = 200


def shown(value: Any) -> str:
    """Return what a message says of a wrong value: its ``repr``, of which a long or deep one has only the beginning."""
    return _repr.repr(value)


def require_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise TypeError unless ``value`` is an int, and ValueError unless it is from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    if most is None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    if most is not None and not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, got {shown(value)}")


def require_number(name: str, value: Any, allowed: str, accept: Callable[[float], bool]) -> None:
    """Raise TypeError unless ``value`` is an int or a float, and ValueError unless ``accept`` returns True for it.

    ``allowed`` says in the message what is accepted, such as ``"in (0, 1]"``; ``accept`` must be False for NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = "; YAML takes 1e-3 for text, write 1.0e-3" if isinstance(value, str) and "e" in value else ""
        raise TypeError(f"{name} must be a number {allowed}, got {shown(value)}{hint}")
    if not accept(value):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")


def require_bool(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def require_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def reject_unknown(given: Iterable[str], valid: Iterable[str], what: str) -> None:
    """Raise ValueError for the first key of ``given`` that is not ``valid``, naming the nearest valid one."""
    valid = list(valid)
    for key in given:
        if key not in valid:
            raise ValueError(
                f"unknown key {shown(key)} for {what}{nearest(str(key), valid)}; valid keys: {', '.join(valid)}"
            )


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean 'X'?)`` for a message about a wrong ``word``, or nothing if no word is near.

    A word that is spelled alike comes first, then the shortest that begins with three letters or more of it.
    """
    words = list(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)  # half the letters in common mean nothing
    longer = [other for other in words if len(word) >= 3 and other.startswith(word)]
    found = close or sorted(longer, key=len)
    return f" (did you mean {found[0]!r}?)" if found else ""


def warn_of_range(names: Iterable[str]) -> None:
    """Say of tensors of float64 that finite elements of them are infinite in float32, in which all is compressed."""
    _log.warning(
        "float64 values beyond the range of float32 count as infinite where they are compressed, and so does the step, "
        "on every rank: %s. Make them smaller, or leave them to the framework without compression",
        ", ".join(map(repr, names)),
    )
