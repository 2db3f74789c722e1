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
import importlib
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import numpy as np

import hvd_compress
from hvd_compress.cli import catalogue
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather, Bucket, Collective, Exchange
from hvd_compress.kernels import Float32, get, workspace
from hvd_compress.memory import Residual
from hvd_compress.phased import PhasedCompressor

if TYPE_CHECKING:
    from rich.table import Table

WORKERS = 4
UNIT = "unit"
PEER = "peer"

Row = dict[str, Any]


@dataclass
class Candidate:
    """Something to time; ``kind`` is ``unit``, ``peer``, ``compressor`` or ``kernel``."""

    name: str
    run: Callable[[], Any]
    residual: Float32 | None  # restored before every call
    others: Sequence[np.ndarray[Any, Any]] = ()  # what else it reads or writes: as warm as the residual
    kind: str = "kernel"
    sent_bytes: int | None = None
    """Of one step, handed to collectives."""


class Inputs:
    """A gradient and a residual of n elements, Laplace-distributed, and how to get them back."""

    def __init__(self, n: int) -> None:
        self.n = n
        generator = np.random.default_rng(0)
        self.original_gradient, self.original_residual = (
            generator.laplace(size=n, scale=scale).astype(np.float32) for scale in (1.0, 0.5)
        )
        self.gradient = self.original_gradient.copy()
        self.memory = Residual(get(), n)
        self.out = get().empty(n)

    def restore(self, candidate: Candidate | Step) -> None:
        for other in candidate.others:
            other.max()
        np.copyto(self.gradient, self.original_gradient)
        if candidate.residual is not None:
            np.copyto(candidate.residual, self.original_residual)


def unit(inputs: Inputs, with_torch: bool) -> Candidate:
    """``residual += gradient``, as PyTorch or as NumPy does it."""
    if not with_torch:
        summed = inputs.original_residual.copy()
        return Candidate("residual += gradient", lambda: np.add(summed, inputs.gradient, out=summed), summed, kind=UNIT)
    import torch

    residual, gradient = torch.from_numpy(inputs.original_residual).clone(), torch.from_numpy(inputs.gradient)
    return Candidate("residual.add_(gradient)", lambda: residual.add_(gradient), residual.numpy(), kind=UNIT)


class Step:
    """A compressor's exchange on the inputs, among ``workers`` workers that all give the same."""

    def __init__(self, inputs: Inputs, algorithm: Compressor, workers: int) -> None:
        kernels = get()
        shared = type(algorithm.new_memory(kernels, 1)) is Residual
        self._memory = inputs.memory if shared else algorithm.new_memory(kernels, inputs.n)
        self._gradient, self._algorithm, self._workers = inputs.gradient, algorithm, workers
        self._bucket = Bucket("bucket", inputs.n, self._memory, kernels, rank=0, workers=workers, seed=0)
        self.residual = self._memory.held_back()
        self.others = [array for array in vars(self._memory).values() if isinstance(array, np.ndarray) and array.size]

    def compress(self) -> list[Collective]:
        """From the gradient to the last collective; each is answered with what this worker gave."""
        exchange = self._begin()
        collectives = [next(exchange)]
        while len(collectives) < len(self._algorithm.schedule):
            collectives.append(exchange.send(self._answer(collectives[-1])))
        return collectives

    def run(self) -> tuple[list[Collective], list[float]]:
        """The whole exchange: its collectives, and the seconds of computation before each and after the last."""
        collectives: list[Collective] = []
        seconds = []
        began = time.perf_counter()
        exchange = self._begin()
        answer: Any = None  # as next() would send
        for _ in self._algorithm.schedule:
            collectives.append(exchange.send(answer))
            seconds.append(time.perf_counter() - began)
            answer = np.ascontiguousarray(self._answer(collectives[-1]))
            if getattr(collectives[-1], "op", "") == "sum":
                answer = answer * answer.dtype.type(self._workers)
            began = time.perf_counter()
        self._memory.commit()
        try:
            exchange.send(answer)
        except StopIteration:
            seconds.append(time.perf_counter() - began)
        return collectives, seconds

    def _begin(self) -> Exchange:
        self._bucket.step += 1
        self._memory.begin([self._gradient])
        return self._algorithm.exchange(self._bucket)

    def _answer(self, collective: Collective) -> np.ndarray[Any, Any]:
        sent = array(collective)
        return np.broadcast_to(sent, (self._workers, len(sent))) if isinstance(collective, AllGather) else sent


def compressor(inputs: Inputs, name: str, algorithm: Compressor) -> Candidate:
    """From the gradient to the finished payload."""
    step = Step(inputs, algorithm, WORKERS)
    sent = sum(array(collective).nbytes for collective in step.compress())
    return Candidate(name, step.compress, step.residual, step.others, "compressor", sent)


def array(collective: Collective) -> np.ndarray[Any, Any]:
    """What a worker hands over."""
    return collective.payload if isinstance(collective, AllGather) else collective.values


def select(inputs: Inputs, ratio: float) -> Candidate:
    """The fused pass that adds, compares and takes out, with the threshold known."""
    kernels, k = get(), max(1, round(ratio * inputs.n))
    capacity = k + k // 4
    memory, out = inputs.memory.arrays()["residual"], inputs.out
    indices, values = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
    threshold = kernels.kth_largest(np.abs(inputs.original_gradient + inputs.original_residual), k)
    return Candidate(
        f"select, threshold given, {ratio}",
        lambda: kernels.select(memory, [inputs.gradient], out, threshold, capacity, indices, values),
        memory,
        [out],
    )


def decode(inputs: Inputs, ratio: float) -> Candidate:
    """The mean of several workers' sparse payloads."""
    kernels, k = get(), max(1, round(ratio * inputs.n))
    layout = SparseFormat(inputs.n, -(-k // 8) * 8)
    out, payloads = inputs.out, np.empty((WORKERS, layout.nbytes), np.uint8)
    indices, values = np.empty(workspace(k), np.uint32), np.empty(workspace(k), np.float32)
    for worker in range(WORKERS):
        gradient = np.random.default_rng(1 + worker).laplace(size=inputs.n).astype(np.float32)
        kept = kernels.select(None, [gradient], out, 0.0, k, indices, values).kept
        layout.encode(kernels, indices[:kept], values[:kept], None, payloads[worker])
    return Candidate(
        f"decode of {WORKERS} payloads, {ratio}",
        lambda: layout.decode(kernels, payloads, 1 / WORKERS, out),
        inputs.memory.arrays()["residual"],
        [out, payloads],
    )


def fastest(values: Sequence[Any], share: float, key: Callable[[Any], float] | None = None) -> list[Any]:
    """The smallest ``share`` of some values, at least one: on a machine that others use too, the least disturbed.

    >>> fastest([3, 1, 9, 2, 8], 0.5)
    [1, 2, 3]
    """
    return sorted(values, key=key)[: max(1, math.ceil(share * len(values)))]


def rounds_for(n: int, rounds: int) -> int:
    """``rounds`` are for large sizes; small ones are quick and get more."""
    return rounds * (10 if n < 1_000_000 else 3 if n < 10_000_000 else 1)


def measure(
    inputs: Inputs,
    candidates: Sequence[Candidate],
    rounds: int,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[Row]:
    """A row for each candidate, the first of which is the unit: its ratio is 1.

    ``n``, ``name``, ``kind``, ``ratio`` (median) and its ``quartiles``, ``us`` (median microseconds), ``sent_bytes``.
    """
    times: dict[str, list[float]] = {c.name: [] for c in candidates}
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_number in progress(range(rounds + 1)):
            for candidate in order.sample(candidates, len(candidates)):
                inputs.restore(candidate)
                start = time.perf_counter()
                candidate.run()
                elapsed = time.perf_counter() - start
                if round_number:  # the first one pays for first touches
                    times[candidate.name].append(elapsed)
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
            }
        )
    return rows


def has_torch() -> bool:
    """Whether PyTorch can be imported; if so, it uses one thread from now on."""
    try:
        importlib.import_module("torch").set_num_threads(1)
    except Exception:  # a broken installation raises whatever it likes
        return False
    return True


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernels = get().name
    found = {
        "processor": models[0] if models else platform.machine(),
        "isa": importlib.import_module("hvd_compress.kernels.host").isa() if kernels == "host" else kernels,
        "threads": 1,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "hvd_compress": hvd_compress.__version__,
        "load": round(os.getloadavg()[0], 1),
    }
    if sys.modules.get("torch"):
        found["torch"] = sys.modules["torch"].__version__
    return found


def table(rows: Sequence[Row], goal: Callable[[str, int], float | None] | None = None) -> Table:
    """Ratios by candidate and size; in brackets the ``goal``, or how much less is sent than float32 has."""
    from rich.markup import escape
    from rich.table import Table

    sizes = sorted({row["n"] for row in rows})
    what = "goal" if goal else "times smaller than float32"
    result = Table("candidate", title=f"time / time of residual += gradient, one thread; in brackets: {what}")
    for n in sizes:
        result.add_column(f"n = {n:,}", justify="right")
    found = {(row["name"], row["n"]): row for row in rows}
    for name in dict.fromkeys(row["name"] for row in rows):
        result.add_row(escape(name), *(_cell(found.get((name, n)), goal) for n in sizes))
    return result


def _cell(row: Row | None, goal: Callable[[str, int], float | None] | None) -> str:
    if row is None:
        return ""
    bracket = ""
    if goal is not None:
        bracket = f" ({wanted})" if (wanted := goal(row["name"], row["n"])) else ""
    elif row["sent_bytes"]:
        bracket = f" ({4 * row['n'] / row['sent_bytes']:.1f}x)"
    return f"{row['ratio']:.2f}{bracket}"


def plot(rows: Sequence[Row], about: dict[str, Any], path: Path) -> None:
    """Bars of the ratios, one axis a size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = sorted({row["n"] for row in rows})
    kinds = {row["name"]: row["kind"] for row in rows if row["kind"] != UNIT}
    names = list(kinds)
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 + 4 * len(sizes), 1.5 + 0.3 * len(names)), sharey=True)
    for axis, n in zip(np.atleast_1d(axes), sizes, strict=True):
        ratios = [next((r["ratio"] for r in rows if r["name"] == name and r["n"] == n), np.nan) for name in names]
        bars = axis.barh(names, ratios, color=["tab:gray" if kinds[name] == PEER else "tab:blue" for name in names])
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=f"n = {n:,}", xscale="log", xlabel="time / time of residual += gradient")
        axis.margins(x=0.2)
    np.atleast_1d(axes)[0].invert_yaxis()
    figure.suptitle(f"{about['processor']}, {about['isa']}, {about['threads']} thread")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def sizes(texts: Iterable[str]) -> list[int]:
    """Numbers of elements: ``4000000``, ``4_000_000``, ``4,000,000`` or ``4e6``.

    Raises:
        ValueError: one is not a number of elements; names it.
    """
    return list(dict.fromkeys(count("--size", text) for text in texts))


def count(option: str, text: str) -> int:
    """A number of elements: ``4000000``, ``4_000_000``, ``4,000,000`` or ``4e6``. Raises ValueError: it is none."""
    try:
        n = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        n = 0
    if not (n >= 1 and n == int(n)):
        raise ValueError(f"{option} must be a number of elements, such as 4000000 or 4e6, got {text!r}")
    return int(n)


def phased(algorithm: Compressor) -> bool:
    """Whether its steps change from phase to phase, so that no single one tells what it costs."""
    return isinstance(algorithm, PhasedCompressor)


def load(config: str | Path) -> Compressor:
    """A compressor to time: what ``from_config`` makes of ``config``. Raises what that raises, and ValueError if the
    compressor is ``phased``."""
    made = hvd_compress.from_config(config)
    if phased(made):
        raise ValueError(
            f"what {config} sends and costs changes from phase to phase: no single step of it can be timed"
        )
    return made


def algorithms(names: Iterable[str] | None = None) -> dict[str, Compressor]:
    """Compressors by what they are called in the table, their repr; by default all that can be loaded and timed.

    Raises:
        ValueError, TypeError, OSError: what ``load`` raises.
    """
    if names is None:
        made = [hvd_compress.from_config(entry.name) for entry in catalogue.entries() if not entry.error]
        made = [algorithm for algorithm in made if not phased(algorithm)]
    else:
        made = [load(name) for name in names]
    return {repr(algorithm): algorithm for algorithm in made}


def run(
    n: int,
    chosen: dict[str, Compressor],
    ratio: float | None,
    rounds: int,
    with_torch: bool,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[Row]:
    """The rows of one size: the unit, the compressors and, with a ratio, the kernels of sparse payloads."""
    inputs = Inputs(n)
    candidates = [unit(inputs, with_torch), *(compressor(inputs, name, made) for name, made in chosen.items())]
    if ratio is not None:
        candidates += [select(inputs, ratio), decode(inputs, ratio)]
    return measure(inputs, candidates, rounds_for(n, rounds), progress)
