"""What the annotations of compressors promise is what they take; ``tests/public_types.py`` is for the type checker."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Literal

import pytest

from hvd_compress import Compressor, registry

CLASSES = [registry.get(name) for name in registry.BUILT_IN]


def arguments() -> list[tuple[type[Compressor], str, Any]]:
    """All arguments of all compressors, with their annotations."""
    found = []
    for cls in CLASSES:
        hints = typing.get_type_hints(cls)
        found += [(cls, name, hints[name]) for name in inspect.signature(cls).parameters]
    return found


def alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


WORDS = [
    (cls, name, typing.get_args(one))
    for cls, name, hint in arguments()
    for one in alternatives(hint)
    if typing.get_origin(one) is Literal
]

NEEDS = {"all-reduce": {"dtype": "float16"}, "paper": {"stages": "adaptive"}}
"""What words go with, where not with the defaults."""


def test_every_argument_has_a_type() -> None:
    """But for a framework's own process sets."""
    assert {name for _, name, hint in arguments() if hint is Any} == {"process_set"}


def test_words_are_listed_by_their_values() -> None:
    """A type ``str`` is for paths and names, of which nobody can say what there are."""
    free = {(cls.__name__, name) for cls, name, hint in arguments() if str in alternatives(hint)}
    assert free == {("TwoLevel", "compressor"), ("LGC", "weights"), ("LGC", "record")}


@pytest.mark.parametrize(("cls", "name", "words"), WORDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_words_are_those_that_are_taken(cls: type[Compressor], name: str, words: tuple[str, ...]) -> None:
    with pytest.raises((ValueError, TypeError)) as wrong:
        cls(**{name: "nope"})
    assert all(word in str(wrong.value) for word in words)
    for word in words:
        assert getattr(cls(**{name: word, **NEEDS.get(word, {})}), name) == word
