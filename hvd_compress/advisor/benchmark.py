"""What compression costs on this machine, in units of the cheapest thing it could cost.

The unit is one pass of error feedback, ``residual += gradient``: two arrays read, one written. Every round runs all
candidates once, in random order, in one process, on one thread; a figure is the median over the rounds of a candidate's
time divided by the unit's time in the same round. Before every call residual and gradient are restored, and the other
arrays that it uses are read, untimed: all of a candidate's arrays are as warm as the unit's.

Compressors are timed from the gradient to the finished payload, error feedback included; of exchanges with several
rounds all payloads, without the decoding of the last.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np

from hvd_compress.advisor.exchange_timing import Inputs, TimedExchange
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import sent_array
from hvd_compress.kernels import Float32, UInt8, get, workspace

WORKERS = 4
"""Workers of the exchanges that are timed."""
UNIT = "unit"
PEER = "peer"
BYTES_PER_ELEMENT = 32
"""At least so much memory is needed to time anything on a gradient: its arrays, and those that they are made from."""
LARGEST_SIZE = 2**32 - 1
"""Elements that a bucket can have."""

Row = dict[str, Any]


@dataclass
class Candidate:
    """Something to time; ``kind`` is ``unit``, ``peer``, ``compressor`` or ``kernel``."""

    name: str
    run: Callable[[], Any]
    residual: Float32 | None
    """What is restored before every call."""
    others: Sequence[np.ndarray[Any, Any]] = ()
    """What else it reads or writes, which is made as warm as the residual."""
    kind: str = "kernel"
    sent_bytes: int | None = None
    """The bytes of one step that are handed to collectives."""


def unit(inputs: Inputs, with_torch: bool) -> Candidate:
    """Return ``residual += gradient``, as PyTorch or as NumPy does it; on a device PyTorch does."""
    given: Any = inputs.gradient
    if not isinstance(given, np.ndarray):
        there = given.clone()
        return Candidate("residual.add_(gradient)", lambda: there.add_(given), there, kind=UNIT)
    if not with_torch:
        summed = inputs.original_residual.copy()
        return Candidate("residual += gradient", lambda: np.add(summed, inputs.gradient, out=summed), summed, kind=UNIT)
    import torch

    residual, gradient = torch.from_numpy(inputs.original_residual).clone(), torch.from_numpy(inputs.gradient)
    return Candidate("residual.add_(gradient)", lambda: residual.add_(gradient), residual.numpy(), kind=UNIT)


def compressor(inputs: Inputs, name: str, algorithm: Compressor) -> Candidate:
    """Return a compressor's way from the gradient to the finished payload."""
    exchange = TimedExchange(inputs, algorithm, WORKERS)
    sent = sum(sent_array(collective).nbytes for collective in exchange.compress())
    return Candidate(name, exchange.compress, exchange.residual, exchange.others, "compressor", sent)


def select(inputs: Inputs, ratio: float) -> Candidate:
    """Return the fused pass that adds, compares and takes out, with the threshold known."""
    kernels, k = inputs.kernels, max(1, round(ratio * inputs.n))
    capacity = k + k // 4
    memory, out = inputs.memory.arrays()["residual"], inputs.out
    room = workspace(capacity)
    indices, values = kernels.empty_on_host(room).view(np.uint32), kernels.empty_on_host(room)
    threshold = kernels.kth_largest(np.abs(inputs.original_gradient + inputs.original_residual), k)
    return Candidate(
        f"select, threshold given, {ratio}",
        lambda: kernels.select(memory, [inputs.gradient], out, threshold, capacity, indices, values),
        memory,
        [out],
    )


def decode(inputs: Inputs, ratio: float, workers: int = WORKERS) -> Candidate:
    """Return the decoding of several workers' sparse payloads to their mean; ``WORKERS`` of them differ, at most."""
    layout, payloads = _payloads(inputs, ratio, workers)
    return Candidate(
        f"decode of {workers} payloads, {ratio}",
        lambda: layout.decode(inputs.kernels, payloads, 1 / workers, inputs.out),
        inputs.memory.arrays()["residual"],
        [inputs.out, payloads],
    )


def decode_limit(inputs: Inputs, ratio: float, workers: int) -> Candidate:
    """Return what decoding cannot do without: to write the mean, and to read the payloads."""
    _, payloads = _payloads(inputs, ratio, workers)
    words = payloads.reshape(-1).view(np.uint64)

    def run() -> None:
        inputs.out.fill(0)
        words.sum()

    return Candidate(
        f"write the mean, read {workers} payloads, {ratio}",
        run,
        inputs.memory.arrays()["residual"],
        [inputs.out, payloads],
    )


def _payloads(inputs: Inputs, ratio: float, workers: int) -> tuple[SparseFormat, UInt8]:
    kernels, k = get(), max(1, round(ratio * inputs.n))
    layout = SparseFormat(inputs.n, -(-k // 8) * 8)
    payloads = np.empty((min(workers, WORKERS), layout.nbytes), np.uint8)
    indices, values, out = (
        np.empty(workspace(k), np.uint32),
        np.empty(workspace(k), np.float32),
        kernels.empty(inputs.n),
    )
    for worker, payload in enumerate(payloads):
        gradient = np.random.default_rng(1 + worker).laplace(size=inputs.n).astype(np.float32)
        kept = kernels.select(None, [gradient], out, 0.0, k, indices, values).kept
        layout.encode(kernels, indices[:kept], values[:kept], None, payload)
    return layout, np.resize(payloads, (workers, layout.nbytes))


def check_size(n: int, memory: int) -> None:
    """Raise ValueError if a gradient of ``n`` elements cannot be timed on a machine with so many bytes of memory."""
    if n > LARGEST_SIZE:
        raise ValueError(f"a bucket has at most {LARGEST_SIZE:,} elements, not {n:,}")
    if n * BYTES_PER_ELEMENT > memory:
        needed, there = n * BYTES_PER_ELEMENT / 1e9, memory / 1e9
        raise ValueError(f"{n:,} elements take {needed:,.0f} GB of memory or more; this machine has {there:,.0f} GB")


def rounds_for(n: int, rounds: int) -> int:
    """Return how many rounds a size gets: ``rounds`` are for large ones; small ones are quick and get more."""
    return rounds * (10 if n < 1_000_000 else 3 if n < 10_000_000 else 1)


def measure(
    inputs: Inputs,
    candidates: Sequence[Candidate],
    rounds: int,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[Row]:
    """Return a row for each candidate, the first of which is the unit: its ratio is 1.

    A row has ``n``, ``name``, ``kind``, ``ratio`` (median) and its ``quartiles``, ``us`` (median microseconds),
    ``sent_bytes``, and ``waits``: how often the host waited for the device in the last call, or None.
    """
    times: dict[str, list[float]] = {c.name: [] for c in candidates}
    waits: dict[str, int] = {}
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_number in progress(range(rounds + 1)):
            for candidate in order.sample(candidates, len(candidates)):
                inputs.restore(candidate)
                waited = inputs.waits()
                elapsed = inputs.seconds(candidate.run)
                if round_number:  # the first one pays for first touches
                    times[candidate.name].append(elapsed)
                if waited is not None:
                    waits[candidate.name] = (inputs.waits() or 0) - waited
    finally:
        if collecting:
            gc.enable()
    base = times[candidates[0].name]
    rows = []
    for candidate in candidates:
        own = times[candidate.name]
        ratios = [t / b for t, b in zip(own, base, strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows.append(
            {
                "n": inputs.n,
                "name": candidate.name,
                "kind": candidate.kind,
                "ratio": median(ratios),
                "quartiles": [low, high],
                "us": median(own) * 1e6,
                "sent_bytes": candidate.sent_bytes,
                "waits": waits.get(candidate.name),
            }
        )
    return rows


def run(
    n: int,
    chosen: Mapping[str, Compressor],
    ratio: float | None,
    rounds: int,
    with_torch: bool,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    make_inputs: Callable[[int], Inputs] = Inputs,
) -> list[Row]:
    """Return the rows of one size: the unit, the compressors and, with a ratio, the kernels of sparse payloads."""
    inputs = make_inputs(n)
    candidates = [unit(inputs, with_torch), *(compressor(inputs, name, made) for name, made in chosen.items())]
    if ratio is not None:
        candidates += [select(inputs, ratio), decode(inputs, ratio)]
    return measure(inputs, candidates, rounds_for(n, rounds), progress)
