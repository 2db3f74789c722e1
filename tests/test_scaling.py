"""benchmarks/scaling.py: how bytes and the work of decoding grow with the number of workers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks.launching import ROOT

SMALL, LARGE = 16, 128
FLAT = 1.1
"""What the exchanges that sum on the way may grow by."""


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    monkeypatch.setattr(scaling, "SIZE", 131_072)
    return scaling


def growth(scaling: Any, name: str) -> tuple[float, float]:
    """Of the bytes through a worker's link, but not within its node, and of the payloads that it decodes."""
    few, many = (scaling.Workers(scaling.COMPRESSORS[name], count).run() for count in (SMALL, LARGE))
    return many.others / few.others, many.decoded / few.decoded


@pytest.mark.parametrize("name", ["reduce-scattered", "shared indices"])
def test_what_is_summed_on_its_way_does_not_grow(scaling: Any, name: str) -> None:
    through, decoded = growth(scaling, name)
    assert 1 <= through <= FLAT
    assert 1 <= decoded <= FLAT


def test_what_is_gathered_grows_with_the_workers(scaling: Any) -> None:
    through, decoded = growth(scaling, "all-gathered")
    assert through == pytest.approx((LARGE - 1) / (SMALL - 1))
    assert decoded == LARGE / SMALL


def test_two_levels_grow_like_what_they_are_put_around_with_the_nodes(scaling: Any) -> None:
    through, decoded = growth(scaling, "two levels, between nodes")
    nodes = [count // scaling.PER_NODE for count in (SMALL, LARGE)]
    assert 1 <= through * (1 - 1 / nodes[0]) / (1 - 1 / nodes[1]) <= FLAT
    assert 1 <= decoded <= FLAT
    gathered, _ = growth(scaling, "two levels, gathered, between nodes")
    assert gathered == pytest.approx((nodes[1] - 1) / (nodes[0] - 1))
