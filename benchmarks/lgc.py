"""What LGC sends, what it loses, what it costs, and what a network learns with it.

    python benchmarks/lgc.py train --workers 2 --compression lgc --out build/lgc/2-lgc.json
    python benchmarks/lgc.py record --workers 4 --vectors build/lgc/vectors
    python benchmarks/lgc.py reconstruct --vectors build/lgc/vectors --out docs/results/lgc-reconstruction.json

``train`` trains the example's network as some ranks do, in one process, and writes accuracy, bytes and seconds.
``record`` trains with top-k at common indices and keeps what the workers send; ``reconstruct`` trains an autoencoder on
the first part of that, and compares what it makes of the rest with top-k and with quantized values at equal bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

import hvd_compress
from hvd_compress.codecs.index_set import IndexSetFormat
from hvd_compress.codecs.innovations import InnovationFormat
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.autoencoder import Codec, from_bytes
from hvd_compress.lgc.neighbours import neighbour_means
from hvd_compress.lgc.offline import samples_of
from hvd_compress.lgc.trainer import Trainer

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
import example_training

CANDIDATES: dict[str, dict[str, Any]] = {
    "dense": {"name": "dense"},
    "topk": {"name": "topk", "ratio": 0.001},
    "lgc": {"name": "lgc"},
    "lgc-gather": {"name": "lgc", "variant": "gather"},
    "lgc-no-signs": {"name": "lgc", "signs": False},
    "lgc-no-signs-no-floor": {"name": "lgc", "signs": False, "floor": False},
    "topk-0.01": {"name": "topk", "ratio": 0.01},
    "lgc-0.01": {"name": "lgc", "ratio": 0.01},
    "lgc-gather-0.01": {"name": "lgc", "ratio": 0.01, "variant": "gather"},
}
LENGTH_SHARE = 0.75
"""Of the recorded vectors to train on; the rest, which come later, to compare on."""


def train(workers: int, name: str, epochs: int) -> dict[str, Any]:
    """One run; sizes are the mean over the workers."""
    simulation = hvd_compress.Simulation(hvd_compress.from_config(CANDIDATES[name]), workers)
    phases: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    before = {"encode": 0.0, "decode": 0.0}

    def reduce(step: int, gradients: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        means = simulation.step(gradients)
        stats = [compressor.stats() for compressor in simulation.compressors]
        phase = stats[0]["lgc"]["phase"] if "lgc" in stats[0] else name
        phases[phase].append(float(np.mean([s["recent"]["sent_bytes"] for s in stats])))
        if "lgc" in stats[0]:
            now = stats[0]["lgc"]["seconds"]
            seconds[phase].append(now["encode"] + now["decode"] - sum(before.values()))
            before.update(encode=now["encode"], decode=now["decode"])
        if step % 100 == 0:
            print(workers, name, step, phase, flush=True)
        return means

    accuracy = example_training.train(reduce, epochs=epochs, workers=workers)
    last = [compressor.stats() for compressor in simulation.compressors]
    return {
        "workers": workers,
        "name": name,
        "configuration": repr(simulation.compressors[0]),
        "epochs": epochs,
        "accuracy": 100 * accuracy,
        "phases": {
            phase: {"steps": len(sent), "bytes": float(np.mean(sent)), "total": float(np.sum(sent))}
            for phase, sent in phases.items()
        },
        "codec_ms": {phase: 1e3 * float(np.median(values)) for phase, values in seconds.items() if values},
        "dense_bytes": last[0]["total"]["dense_bytes"],
        "lgc": last[0].get("lgc"),
    }


def record(workers: int, folder: Path, epochs: int) -> None:
    """Train in phase 2 for ever; the roots of the vectors' files say in which step they were sent."""
    compressor = hvd_compress.LGC(
        train_steps=10**9, record=str(folder), trainer="inline", encoder=(1, 1), decoder=(1,), floor=False
    )
    simulation = hvd_compress.Simulation(compressor, workers)
    example_training.train(lambda _, g: simulation.step(g), epochs=epochs, workers=workers)


def reconstruct(folder: Path, elements: int, batches: int) -> dict[str, Any]:
    """Relative squared errors of the mean vector, and the bytes that a rank sends, on vectors not trained on."""
    samples = list(samples_of(folder))
    length = max(vectors.shape[1] for vectors, _ in samples)
    samples = [sample for sample in samples if sample[0].shape[1] == length]
    cut = int(LENGTH_SHARE * len(samples))
    workers = samples[0][0].shape[0]
    index_bytes = IndexSetFormat(elements, length).nbytes
    alike = [cosine(vectors) for vectors, _ in samples[cut:]]
    rows = []
    for variant in ("allreduce", "gather"):
        architecture = Architecture(variant, innovation=0.1 if variant == "gather" else 0.0)
        trainer = Trainer(architecture)
        for vectors, entries in samples[:cut]:
            trainer.add(vectors, entries)
        started = perf_counter()
        while trainer.batches < batches and not trainer.stalled:
            trainer.train(20)
        spent = perf_counter() - started
        codec = Codec(from_bytes(trainer.finish().weights, architecture))
        count = architecture.innovations(length)
        code = 2 * architecture.numbers(length)
        sent = index_bytes / workers
        sent += code if variant == "allreduce" else code / workers + InnovationFormat(length, count).nbytes
        error, encode, decode = measured(codec, [vectors for vectors, _ in samples[cut:]], count)
        rows.append(
            {
                "name": f"LGC, {variant}", "bytes": sent, "error": error, "batches": trainer.batches,
                "training_s": spent, "encode_ms": encode, "decode_ms": decode, "parameters": codec.parameters,
            }
        )  # fmt: skip
    held = [vectors for vectors, _ in samples[cut:]]
    untrained = neighbour_means(Architecture())
    assert untrained is not None
    sent = index_bytes / workers + 2 * Architecture().numbers(length)
    error, _, _ = measured(Codec(untrained), held, 0)
    rows.append({"name": "means of four neighbours, untrained", "bytes": sent, "error": error})
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0):
        count = max(1, round(share * length))
        rows.append({"name": f"top-k, float16, {share:.0%} of k", "bytes": 4 * count, "error": top_k(held, count)})
    rows += [
        {
            "name": f"QSGD of the values, {bits} bits",
            "bytes": index_bytes / workers + 4 + quantized_bytes(length, bits, workers),
            "error": quantized(held, bits),
        }
        for bits in (2, 3, 4, 6, 8)
    ]
    return {
        "workers": workers, "length": length, "elements": elements, "trained_on": cut, "compared_on": len(held),
        "cosine": float(np.mean(alike)), "rows": rows,
    }  # fmt: skip


def cosine(vectors: np.ndarray) -> float:
    """Of the angle between two workers' vectors, on the average of the pairs."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def relative(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of what was made of vectors, and the vectors."""
    wrong = sum(float(np.square(made - true).sum(dtype=np.float64)) for made, true in pairs)
    return wrong / sum(float(np.square(true).sum(dtype=np.float64)) for _, true in pairs)


def measured(codec: Codec, held: list[np.ndarray], count: int) -> tuple[float, float, float]:
    """The error, and the median milliseconds of encoding one vector and of what a rank has to decode."""
    pairs, encoding, decoding = [], [], []
    for vectors in held:
        workers, length = vectors.shape
        started = perf_counter()
        first = codec.encode(vectors[:1], workers)
        encoding.append(perf_counter() - started)
        innovations = None
        if count:
            innovations = np.zeros_like(vectors)
            places = np.argsort(-np.abs(vectors), axis=1, kind="stable")[:, :count]
            np.put_along_axis(innovations, places, np.take_along_axis(vectors, places, 1).astype(np.float16), 1)
            codes = np.repeat(first, workers, 0)
        else:
            codes = codec.encode(vectors, workers).astype(np.float32).mean(0, keepdims=True)
        started = perf_counter()
        decoded = codec.decode(codes, length, innovations).mean(0)
        decoding.append(perf_counter() - started)
        pairs.append((decoded, vectors.mean(0)))
    return relative(pairs), 1e3 * float(np.median(encoding)), 1e3 * float(np.median(decoding))


def top_k(held: list[np.ndarray], count: int) -> float:
    """Every worker sends its ``count`` largest values, as float16."""
    pairs = []
    for vectors in held:
        sent = np.zeros_like(vectors)
        places = np.argsort(-np.abs(vectors), axis=1, kind="stable")[:, :count]
        np.put_along_axis(sent, places, np.take_along_axis(vectors, places, 1).astype(np.float16), 1)
        pairs.append((sent.mean(0), vectors.mean(0)))
    return relative(pairs)


def quantized(held: list[np.ndarray], bits: int) -> float:
    """``QSGDMaxNorm`` of the values at the common indices."""
    pairs = []
    for number, vectors in enumerate(held):
        simulation = hvd_compress.Simulation(hvd_compress.QSGDMaxNorm(bits, min_numel=1, seed=number), len(vectors))
        pairs.append((simulation.step({"w": list(vectors[:, np.newaxis])})["w"][0], vectors.mean(0)))
    return relative(pairs)


def quantized_bytes(length: int, bits: int, workers: int) -> int:
    """What ``QSGDMaxNorm`` sends for so many values."""
    simulation = hvd_compress.Simulation(hvd_compress.QSGDMaxNorm(bits, min_numel=1), workers)
    simulation.step({"w": [np.ones((1, length), np.float32)] * workers})
    return int(simulation.compressors[0].stats()["total"]["sent_bytes"])


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("what", choices=("train", "record", "reconstruct"))
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--compression", choices=CANDIDATES, default="lgc")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--vectors", type=Path, default=Path(tempfile.gettempdir()) / "lgc-vectors")
    flags.add_argument("--elements", type=int, default=342_000, help="of the bucket that the vectors are from")
    flags.add_argument("--batches", type=int, default=1500, help="at most, to train the autoencoder on")
    flags.add_argument("--out", type=Path)
    chosen = flags.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "record":
        record(chosen.workers, chosen.vectors, chosen.epochs)
        return
    if chosen.what == "train":
        result = train(chosen.workers, chosen.compression, chosen.epochs)
    else:
        result = reconstruct(chosen.vectors, chosen.elements, chosen.batches)
    text = json.dumps(result, indent=1) + "\n"
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
