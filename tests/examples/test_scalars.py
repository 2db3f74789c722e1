"""``--tensorboard DIR``; test_train_torch and test_train_tensorflow check what whole runs write."""

from pathlib import Path

import pytest
import scalars

from tests.examples.board import read


def test_a_run_that_goes_on_hides_what_an_interrupted_epoch_left(tmp_path: Path) -> None:
    with scalars.Scalars(tmp_path) as first:
        for step in (1, 2, 3, 4):
            first.add(step, {"a": 10.0 + step})
    with scalars.Scalars(tmp_path, step=2) as second:
        for step in (3, 4):
            second.add(step, {"a": 20.0 + step})
    assert read(tmp_path) == {"a": [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)]}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with scalars.Scalars(None) as silent:
        silent.add(1, {"a": 1.0})
    assert not list(tmp_path.iterdir())
