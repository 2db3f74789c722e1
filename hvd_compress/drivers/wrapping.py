"""Functions of Horovod's that do something of ours first, whoever else has wrapped them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

MARK = "_hvd_compress_first"
"""The attribute of a function that is ours. A wrapper that somebody puts around it with ``functools.wraps`` has the
attribute, too, and ours inside."""


def wrap_once(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put what ``make`` returns for the function ``name`` of a module or a class in its place, unless that has been
    done."""
    function = getattr(owner, name)
    if not hasattr(function, MARK):
        wrapper = functools.wraps(function)(make(function))
        setattr(wrapper, MARK, True)
        setattr(owner, name, wrapper)
