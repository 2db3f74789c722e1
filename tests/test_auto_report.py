"""benchmarks/auto_report.py: what rounds tell of Auto and its candidates."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.ranks.launching import ROOT


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import auto_report

    return auto_report


def rows(**turns: list[list[float]]) -> dict[str, Any]:
    """Of every candidate the step times of its rounds; no step counted in the first round."""
    return {
        name: {"turns_ms": {"0": [], **{str(n): turn for n, turn in enumerate(of, 1)}}} for name, of in turns.items()
    }


def test_what_changes_from_round_to_round_does_not_count(report: Any) -> None:
    drift = [1, 2, 4, 8, 16, 32]
    found = rows(
        Auto=[[10.2 * d] * 3 for d in drift],
        a=[[10.0 * d, 10.0 * d, 99.0 * d] for d in drift],
        b=[[11.0 * d] for d in drift],
    )
    assert report.fastest(found, ["a", "b"]) == "a"
    difference = report.slower(found, ["a", "b"])
    assert difference.median == pytest.approx(math.log(1.02))
    assert difference.error == pytest.approx(0, abs=1e-9)


def test_the_fastest_is_found_in_other_rounds_than_it_is_compared_in(report: Any) -> None:
    """Two that are alike: each looks fast in one half of the rounds, by chance."""
    found = rows(Auto=[[10.0]] * 4, a=[[9.0], [11.0]] * 2, b=[[11.0], [9.0]] * 2)
    assert report.slower(found, ["a", "b"]).median == pytest.approx(math.log(10 / 11))


def test_only_rounds_of_both_are_compared(report: Any) -> None:
    found = rows(Auto=[[10.0], [20.0], [50.0]], a=[[10.0], [20.0]])
    assert report.apart(found, "Auto", "a") == {1: 0.0, 2: 0.0}


def test_one_round_has_no_standard_error(report: Any) -> None:
    assert str(report.Difference.of([math.log(1.1)])) == "+10.0"
    assert str(report.Difference.of([0.0, 0.0])) == "0"
    assert str(report.Difference.of([0.0, 0.02])) == "+1.0 ± 1.3"


def test_what_is_known_better_weighs_more(report: Any) -> None:
    found = report.together(
        [report.Difference(0.1, 0.01), report.Difference(0.4, 0.02), report.Difference(9.0, math.inf)]
    )
    assert found.median == pytest.approx((0.1 * 4 + 0.4) / 5)
    assert found.error == pytest.approx(0.01 / math.sqrt(1.25))
