"""States in files: what is not one is refused by name, and a disk that is full leaves the last good file alone."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from hvd_compress import Simulation, TopK
from hvd_compress.files import write_whole
from hvd_compress.state_files import read_npz, write_npz
from hvd_compress.state_format import check_state
from tests.contract.test_changes import draw


def state() -> dict[str, Any]:
    sim = Simulation(TopK(0.05, min_numel=1), 1)
    sim.step(draw(0, 1))
    return sim.compressors[0].state_dict()


def test_there_and_back(tmp_path: Path) -> None:
    written = state()
    write_npz(written, tmp_path / "state.npz")
    read = read_npz(tmp_path / "state.npz")
    check_state("topk", read)
    assert read["checksum"] == written["checksum"]


def spoiled(folder: Path, text: Any, **arrays: Any) -> Path:
    np.savez(folder / "state.npz", state=np.array(text), **arrays)
    return folder / "state.npz"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        "null",
        "3",
        "[" * 100_000,
        '{"memory": ' * 50_000,
        "{}",
        '{"memory": 3}',
        '{"memory": {"a": 3}}',
        '{"memory": {"a": {"residual": "array7"}}}',
        '{"memory": {"a": {"residual": 3}}}',
        7,
        b"\xff\xfe",
    ],
    ids=lambda text: f"{text!r:.30}",
)
def test_files_that_are_no_states(text: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state\.npz is not the state of a compressor, or not whole"):
        read_npz(spoiled(tmp_path, text, array0=np.zeros(3, np.float32)))


def test_files_that_are_not_numpy_s(tmp_path: Path) -> None:
    """Nor is anything unpickled."""
    path = tmp_path / "state.npz"
    write_npz(state(), path)
    content = path.read_bytes()
    pickled = np.array([{"a": 1}], dtype=object)
    for bad in (b"", b"PK", content[:100], content[:-30], content[50:], bytes(1000)):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"state\.npz is not the state"):
            read_npz(path)
    text = json.dumps({"memory": {"a": {"residual": "array0"}}})
    with pytest.raises(ValueError, match=r"state\.npz is not the state"):
        read_npz(spoiled(tmp_path, text, array0=pickled))
    with pytest.raises(ValueError, match=r"none\.npz is not the state"):
        read_npz(tmp_path / "none.npz")


def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, lambda file: file.write(b"good"))

    def fill(file: IO[bytes]) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, fill)
    assert path.read_bytes() == b"good"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
