"""Fashion-MNIST for the examples, as NumPy arrays: no framework, so that every framework trains on the same bytes.

The four idx files come from ``--data-dir``, or from Debian's package ``dataset-fashion-mnist``, which needs no root to
download and unpack. Where neither is to be had, scikit-learn's digits take their place, and everybody is told.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

PACKAGE = "dataset-fashion-mnist"
INSIDE_PACKAGE = "usr/share/datasets/fashion-mnist"
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SIDE = 28
# A machine without a network must find out in seconds, not in apt's default of minutes.
PATIENCE = ("Acquire::Retries=1", "Acquire::http::Timeout=15", "Acquire::https::Timeout=15")


class DataError(Exception):
    """The data cannot be had or is not what it should be; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Dataset:
    """Images are uint8 of shape (n, 28, 28), labels int64 of shape (n,), ten classes."""

    name: str
    source: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    note: str = ""
    """Empty, or why this is not the data that was asked for."""

    def limited(self, images: int | None) -> Dataset:
        """The same with only the first ``images`` of the training set."""
        if images is None or images >= len(self.train_images):
            return self
        parts = {"train_images": self.train_images[:images], "train_labels": self.train_labels[:images]}
        return Dataset(**{**vars(self), **parts})

    def describe(self) -> dict[str, Any]:
        """For the record of a run."""
        return {
            "name": self.name,
            "source": self.source,
            "note": self.note,
            "train_images": len(self.train_images),
            "test_images": len(self.test_images),
        }


def load(
    data_dir: Path | None,
    kind: str,
    *,
    first_on_host: bool = True,
    gather: Callable[[str], list[str]] = lambda text: [text],
) -> Dataset:
    """Load the data on every rank: the same data everywhere, or an error everywhere.

    Args:
        data_dir: folder of the four idx files, gzipped or not; None to take the Debian package.
        kind: ``"fashion-mnist"``, or ``"digits"`` to ask for scikit-learn's.
        first_on_host: whether this process is the one that downloads for its host.
        gather: all-gathers a string over the ranks; the ranks wait for each other in it.

    Raises:
        DataError: what was asked for explicitly is not there. (Only the default falls back to digits.)
    """
    if kind == "digits":
        return digits()
    folder = data_dir or cache_folder() / "fashion-mnist"
    problem = ""
    if first_on_host:
        try:
            if data_dir is None:
                fetch(folder)
            read_folder(folder)
        except DataError as error:
            problem = str(error)
    problems = sorted({text for text in gather(problem) if text})
    if not problems:
        return Dataset("fashion-mnist", str(data_dir or f"Debian package {PACKAGE}"), **read_folder(folder))
    if data_dir is not None:
        raise DataError("; ".join(problems))
    return digits(note=f"Fashion-MNIST is not to be had: {'; '.join(problems)}")


def cache_folder() -> Path:
    """Where downloads are kept: ``HVD_COMPRESS_CACHE``, or hvd_compress in the user's cache folder."""
    if own := os.environ.get("HVD_COMPRESS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvd_compress"


def fetch(folder: Path) -> None:
    """Make ``folder`` hold the four files of Debian's package, unless it does already. Raises DataError."""
    if all(_find(folder, name) for name in FILES.values()):
        return
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(f"{tool} not found (the package {PACKAGE} is Debian's); give the files with --data-dir")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            (folder.parent / f"{folder.name}.lock").open("w") as lock,
            tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as scratch,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)  # two jobs on one machine download once
            if not folder.exists():
                unpacked = _download(Path(scratch))
                read_folder(unpacked)
                unpacked.rename(folder)  # complete or not there at all, whenever we are interrupted
    except OSError as error:
        raise DataError(f"cannot write to {folder.parent}: {error.strerror}") from error


def _download(scratch: Path) -> Path:
    settings = list(PATIENCE)
    if os.geteuid() == 0:  # apt would change to a user who cannot write to a private folder
        settings.append("APT::Sandbox::User=root")
    folders = [f"Dir::State::Lists={scratch / 'lists'}", f"Dir::Cache={scratch / 'cache'}"]
    apt = ["apt-get", "-q", *(f"-o{setting}" for setting in settings)]
    private = [*apt, *(f"-o{folder}" for folder in folders)]
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    try:
        _run([*apt, "download", PACKAGE], scratch)
    except DataError:  # no package lists yet, or old ones: fetch our own, which needs no root
        _run([*private, "update"], scratch)
        _run([*private, "download", PACKAGE], scratch)
    packages = list(scratch.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise DataError(f"apt-get download {PACKAGE} left no package")
    _run(["dpkg", "-x", str(packages[0]), str(scratch / "unpacked")], scratch)
    return scratch / "unpacked" / INSIDE_PACKAGE


def _run(command: list[str], folder: Path) -> None:
    verbs = ("update", "download", "-x")
    shown = f"{command[0]} {next(part for part in command if part in verbs)}"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{shown} took more than 300 s") from error
    if done.returncode:
        said = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        raise DataError(f"{shown} failed: {next((line for line in said if line.startswith('E:')), said[0])}")


def read_folder(folder: Path) -> dict[str, Any]:
    """The four arrays by name. Raises DataError: a file is missing or damaged."""
    arrays: dict[str, Any] = {}
    for key, name in FILES.items():
        path = _find(folder, name)
        if path is None:
            raise DataError(f"{folder} has no {name} (or {name}.gz); it needs the four idx files of Fashion-MNIST")
        arrays[key] = read_idx(path)
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or labels.shape != images.shape[:1]:
            raise DataError(f"{folder}: {part} images of shape {images.shape} and labels of shape {labels.shape}")
        arrays[f"{part}_labels"] = labels.astype(np.int64)
    return arrays


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one idx file of bytes (magic 0, 0, 8, dimensions; big-endian sizes; data). Raises DataError."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an idx file of bytes")
    header = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[:header], ">u4", offset=4).tolist()) if len(data) >= header else ()
    if not shape or len(data) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} is damaged: {len(data)} bytes for the shape {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()  # frameworks want it writable


def digits(note: str = "") -> Dataset:
    """scikit-learn's 1,797 digits of 8 by 8, every pixel 3 by 3, a border of 2; every sixth is for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"{note}{'; ' if note else ''}scikit-learn, which has the digits, is missing") from error
    bunch = load_digits()
    small = np.minimum(bunch.images * 16, 255).astype(np.uint8)
    images = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    labels = bunch.target.astype(np.int64)
    test = np.arange(len(images)) % 6 == 5
    source = "scikit-learn load_digits"
    return Dataset("digits", source, images[~test], labels[~test], images[test], labels[test], note)


def batches(count: int, batch_size: int, seed: int, epoch: int, rank: int, ranks: int) -> Iterator[Labels]:
    """The rank's batches of indices in an epoch: disjoint shards of one order that (seed, epoch) alone decide.

    Every rank gets ``steps_per_epoch`` full batches; the remainder sits this epoch out.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for step in range(steps_per_epoch(count, batch_size, ranks)):
        start = (step * ranks + rank) * batch_size
        yield order[start : start + batch_size]


def steps_per_epoch(count: int, batch_size: int, ranks: int) -> int:
    """Full batches that each rank gets out of ``count`` images."""
    return count // (batch_size * ranks)
