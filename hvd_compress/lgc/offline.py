"""Training LGC's autoencoder on recorded vectors; importing this imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvd_compress.files import write_whole
from hvd_compress.kernels import Float32
from hvd_compress.lgc.architecture import Architecture, architecture
from hvd_compress.lgc.trainer import VALIDATE, Trainer
from hvd_compress.lgc.training import Outcome


def lgc_train(
    folder: Path,
    out: Path,
    *,
    variant: str,
    encoder: Sequence[int],
    decoder: Sequence[int],
    innovation: float,
    batches: int,
    seed: int,
) -> dict[str, Any]:
    """Train on what ``LGC(record=folder)`` wrote, write the weights to ``out``, and return what they are worth.

    Raises:
        OSError: a file cannot be read or written, or there are none.
        TypeError, ValueError: there is no such autoencoder, or a file is not a sample.
    """
    made = architecture(variant, tuple(encoder), tuple(decoder), innovation)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: {out.parent} is not a folder")
    outcome = train_offline(folder, made, batches, seed)
    write_whole(out, lambda file: file.write(outcome.weights))
    return {
        "parameters": made.parameters,
        "samples": outcome.samples,
        "batches": outcome.batches,
        "error": outcome.error,
        "top_k_error": outcome.top_k,
        "neighbours_error": outcome.neighbours,
        "problem": outcome.problem,
    }


def train_offline(folder: Path, architecture: Architecture, batches: int, seed: int = 0, rate: float = 1e-3) -> Outcome:
    """Train on recorded samples, for ``batches`` batches or until it is of no more use, and return the outcome."""
    trainer = Trainer(architecture, seed, rate=rate)
    for vectors, entries in samples_of(folder):
        trainer.add(vectors, entries)
    while trainer.batches < batches and not trainer.stalled:
        trainer.train(min(VALIDATE, batches - trainer.batches))
        if not trainer.ready:
            break
    return trainer.finish()


def samples_of(folder: Path) -> Iterator[tuple[Float32, int]]:
    """Yield the samples that ``LGC(record=folder)`` wrote, in their order, and the entries that top-k could send.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is not a sample.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no recorded vectors (*.npz); LGC(record={str(folder)!r}) writes them")
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            if "vectors" not in file or "entries" not in file or file["vectors"].ndim != 2:
                raise ValueError(f"{path} is not a sample of LGC")
            yield file["vectors"].astype(np.float32), int(file["entries"])
