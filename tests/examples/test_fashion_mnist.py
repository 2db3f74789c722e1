import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import fashion_mnist
import numpy as np
import pytest


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four files, tiny; one of them not gzipped."""
    draw = np.random.default_rng(0)
    for key, name in fashion_mnist.FILES.items():
        count = 30 if key.startswith("train") else 10
        shape = (count, 28, 28) if key.endswith("images") else (count,)
        data = idx(draw.integers(0, 10, shape, dtype=np.uint8))
        if key == "test_labels":
            (tmp_path / name).write_bytes(data)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    return tmp_path


def test_a_folder_of_idx_files(folder: Path) -> None:
    data = fashion_mnist.load(folder, "fashion-mnist")
    draw = np.random.default_rng(0)
    assert np.array_equal(data.train_images, draw.integers(0, 10, (30, 28, 28), dtype=np.uint8))
    assert data.test_labels.dtype == np.int64
    assert data.test_labels.shape == (10,)
    assert data.describe() == {
        "name": "fashion-mnist",
        "source": str(folder),
        "note": "",
        "train_images": 30,
        "test_images": 10,
    }
    assert len(data.limited(7).train_labels) == len(data.limited(7).train_images) == 7
    assert data.limited(100) is data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: data + b"x", "damaged"),
        (lambda data: data[:6], "damaged"),
        (lambda data: b"\1" + data[1:], "not an idx file"),
        (lambda data: b"", "not an idx file"),
    ],
)
def test_damaged_files_are_refused(folder: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = folder / fashion_mnist.FILES["test_labels"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(fashion_mnist.DataError, match=message):
        fashion_mnist.load(folder, "fashion-mnist")


def test_a_truncated_gzip_file_is_refused(folder: Path) -> None:
    path = folder / f"{fashion_mnist.FILES['train_images']}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(fashion_mnist.DataError, match="cannot be read"):
        fashion_mnist.load(folder, "fashion-mnist")


def test_images_and_labels_must_match(folder: Path) -> None:
    (folder / fashion_mnist.FILES["test_labels"]).write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(fashion_mnist.DataError, match=r"10, 28, 28.*9,"):
        fashion_mnist.load(folder, "fashion-mnist")


def test_a_missing_file_is_named_and_not_replaced_by_other_data(folder: Path) -> None:
    (folder / f"{fashion_mnist.FILES['train_labels']}.gz").unlink()
    with pytest.raises(fashion_mnist.DataError, match="train-labels-idx1-ubyte"):
        fashion_mnist.load(folder, "fashion-mnist")


def test_another_hosts_problem_is_everybodys(folder: Path) -> None:
    with pytest.raises(fashion_mnist.DataError, match="no space there"):
        fashion_mnist.load(folder, "fashion-mnist", gather=lambda text: [text, "no space there"])


def test_without_debian_the_digits_are_taken_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVD_COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    data = fashion_mnist.load(None, "fashion-mnist")
    assert data.name == "digits"
    assert "apt-get not found" in data.note
    assert data.train_images.shape[1:] == (28, 28)
    assert data.train_images.max() == 255
    assert len(data.train_images) + len(data.test_images) == 1797
    assert not list(tmp_path.iterdir())


def test_apt_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg"):
        (tools / name).write_text("#!/bin/sh\necho 'W: a warning' >&2\necho 'E: the network is down' >&2\nexit 100\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(fashion_mnist.DataError, match=r"^apt-get update failed: E: the network"):
        fashion_mnist.fetch(tmp_path / "cache" / "fashion-mnist")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fashion-mnist.lock"]


def test_a_package_is_unpacked_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(command: list[str], scratch: Path) -> None:
        calls.append(command[0])
        if command[0] == "apt-get":
            (scratch / f"{fashion_mnist.PACKAGE}_1_all.deb").touch()
        else:
            inside = scratch / "unpacked" / fashion_mnist.INSIDE_PACKAGE
            inside.parent.mkdir(parents=True)
            folder.rename(inside)

    monkeypatch.setattr(fashion_mnist, "_run", run)
    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda tool: tool)
    cache = tmp_path.parent / f"{tmp_path.name}-cache"
    monkeypatch.setenv("HVD_COMPRESS_CACHE", str(cache))
    for _ in range(2):
        assert fashion_mnist.load(None, "fashion-mnist").describe()["source"] == "Debian package dataset-fashion-mnist"
    assert calls == ["apt-get", "dpkg"]
    assert sorted(path.name for path in cache.iterdir()) == ["fashion-mnist", "fashion-mnist.lock"]


def test_the_shards_of_an_epoch_are_disjoint_and_repeatable() -> None:
    def epoch(number: int, rank: int) -> np.ndarray:
        return np.concatenate(list(fashion_mnist.batches(103, 10, seed=1, epoch=number, rank=rank, ranks=2)))

    first, second = epoch(0, 0), epoch(0, 1)
    assert len(first) == len(second) == 10 * fashion_mnist.steps_per_epoch(103, 10, 2) == 50
    assert len(np.union1d(first, second)) == 100
    assert np.array_equal(first, epoch(0, 0))
    assert not np.array_equal(first, epoch(1, 0))
