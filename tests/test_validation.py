"""Checks of arguments: what passes, what is refused, and what the error says."""

from typing import Any

import pytest

from hvd_compress.validation import nearest, reject_unknown, require_bool, require_choice, require_int, require_number


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (True, TypeError, "n must be an int, got True"),
        (2.0, TypeError, "n must be an int, got 2.0"),
        ("2", TypeError, "n must be an int, got '2'"),
        (1, ValueError, "n must be from 2 to 4, got 1"),
        (5, ValueError, "n must be from 2 to 4, got 5"),
    ],
)
def test_ints(value: Any, error: type[Exception], message: str) -> None:
    for right in (2, 4):
        require_int("n", right, 2, 4)
    with pytest.raises(error, match=message):
        require_int("n", value, 2, 4)


def test_ints_without_an_upper_bound() -> None:
    require_int("n", 10**30, 2)
    with pytest.raises(ValueError, match="n must be at least 2, got 1"):
        require_int("n", 1, 2)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (False, TypeError, r"x must be a number in \[0, 1\), got False"),
        (None, TypeError, r"x must be a number in \[0, 1\), got None"),
        ("1e-3", TypeError, "got '1e-3'; YAML takes 1e-3 for text, write 1.0e-3"),
        (1, ValueError, r"x must be in \[0, 1\), got 1"),
        (float("nan"), ValueError, r"x must be in \[0, 1\), got nan"),
        (10**400, ValueError, r"x must be in \[0, 1\), got 1000"),
    ],
)
def test_numbers(value: Any, error: type[Exception], message: str) -> None:
    for right in (0, 0.5):
        require_number("x", right, "in [0, 1)", lambda x: 0 <= x < 1)
    with pytest.raises(error, match=message):
        require_number("x", value, "in [0, 1)", lambda x: 0 <= x < 1)


def test_bools_and_choices() -> None:
    require_bool("on", False)
    with pytest.raises(TypeError, match="on must be True or False, got 1"):
        require_bool("on", 1)
    require_choice("norm", "l2", ("max", "l2"))
    with pytest.raises(ValueError, match="norm must be one of 'max', 'l2', got 'l1'"):
        require_choice("norm", "l1", ("max", "l2"))


def test_unknown_keys() -> None:
    reject_unknown({"ratio": 1}, ("ratio", "seed"), "this")
    with pytest.raises(ValueError, match=r"unknown key 'sed' for this .*seed.*; valid keys: ratio, seed"):
        reject_unknown(["ratio", "sed"], ("ratio", "seed"), "this")


@pytest.mark.parametrize(
    ("word", "hint"), [("sidko", "sidco"), ("top-k", "topk"), ("nope", ""), ("dense2", "dense"), ("xyz", ""), ("", "")]
)
def test_nearest(word: str, hint: str) -> None:
    assert nearest(word, ("dense", "sidco", "topk")) == (f" (did you mean {hint!r}?)" if hint else "")


@pytest.mark.parametrize(("word", "hint"), [("qsgd", "qsgd-maxnorm"), ("rand", "randk-maxnorm"), ("qs", "")])
def test_nearest_of_a_beginning(word: str, hint: str) -> None:
    words = ("qsgd-maxnorm-multiscale", "qsgd-maxnorm", "randk-maxnorm", "topk")
    assert nearest(word, words) == (f" (did you mean {hint!r}?)" if hint else "")
