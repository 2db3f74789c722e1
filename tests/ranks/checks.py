"""What scenarios expect, whatever the framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def expect(error: Any, *words: str, run: Any) -> None:
    """``run`` raises ``error``, whose message has all these words."""
    with pytest.raises(error) as caught:
        run()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value!r}"


def learns(losses: list[float]) -> None:
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.7 * first, f"the loss went from {first} to {last}"


def memory(compression: Any) -> dict[str, np.ndarray]:
    """A copy of everything the compressor remembers on this rank."""
    return {
        f"{name}.{key}": np.array(array)
        for name, arrays in compression.state_dict()["memory"].items()
        for key, array in arrays.items()
    }


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Bitwise equality of two memories."""
    return left.keys() == right.keys() and all(left[k].tobytes() == right[k].tobytes() for k in left)
