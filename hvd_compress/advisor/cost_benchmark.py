"""Measures, on this machine, what exchanges cost a worker's processor."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median, quantiles

import numpy as np

from hvd_compress.advisor.cluster import ALLGATHER
from hvd_compress.advisor.costs import GATHERED, CollectiveCost, ExchangeCost, MeasuredCost, interpolated, sizes_of
from hvd_compress.advisor.exchange_timing import Inputs, TimedExchange, fastest
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather

MOST_SIZES, LARGEST_BUCKET = 3, 8_000_000
"""So many sizes of buckets are timed, of at most so many elements; the costs of others follow from theirs."""
SPILL = 64 * 2**20
"""Bytes that are written before an exchange is timed: in training, the caches hold what the network has computed."""


def measure_exchanges(
    algorithms: Mapping[str, Compressor],
    n: int,
    rounds: int = 5,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    share: float = 1.0,
    make_inputs: Callable[[int], Inputs] = Inputs,
) -> dict[str, MeasuredCost]:
    """Time one exchange of each compressor on a bucket of ``n`` elements.

    Figures are medians over rounds in which each takes its turn, in random order; with a ``share`` below 1, over the
    fastest of them. Inputs are as in ``benchmark``.
    """
    inputs = make_inputs(n)
    exchanges = {
        (name, workers): TimedExchange(inputs, algorithm, workers)
        for name, algorithm in algorithms.items()
        for workers in (GATHERED if AllGather in algorithm.schedule else GATHERED[:1])
    }
    times: dict[tuple[str, int], list[list[float]]] = {key: [] for key in exchanges}
    sizes: dict[tuple[str, int], list[tuple[str, int]]] = {}
    order, spill = random.Random(0), np.zeros(SPILL // 4, np.float32)
    for number in progress(range(rounds + 1)):
        for key in order.sample(list(exchanges), len(exchanges)):
            inputs.restore(exchanges[key])
            spill += 1
            collectives, seconds = exchanges[key].run()
            if number:  # the first one pays for first touches
                times[key].append(seconds)
            sizes[key] = sizes_of(collectives)
    found = {}
    for name in algorithms:
        first = [median(column) for column in zip(*fastest(times[name, GATHERED[0]], share, sum), strict=True)]
        sent = zip(sizes[name, GATHERED[0]], first[:-1], strict=True)
        cost = ExchangeCost(tuple(CollectiveCost(kind, nbytes, seconds) for (kind, nbytes), seconds in sent), first[-1])
        growth = 0.0
        few, many = (_gathered(sizes.get((name, workers), []), workers) for workers in GATHERED)
        if many > 2 * few:  # what owners of regions have summed is as much, whatever the number of workers
            later = median(seconds[-1] for seconds in fastest(times[name, GATHERED[1]], share, sum))
            growth = max(0.0, (later - cost.decode) / (GATHERED[1] - GATHERED[0]))
        found[name] = MeasuredCost(n, cost, growth, spread_of([sum(column) for column in times[name, GATHERED[0]]]))
    return found


def _gathered(sizes: Sequence[tuple[str, int]], workers: int) -> int:
    """Return the bytes that a worker gets of all-gathers of these sizes."""
    return workers * sum(nbytes for kind, nbytes in sizes if kind == ALLGATHER)


def spread_of(times: Sequence[float]) -> float:
    """Return in what fraction of the median half of these times lie; 0 of fewer than four."""
    if len(times) < 4:
        return 0.0
    low, middle, high = quantiles(times, n=4)
    return (high - low) / middle


def for_sizes(
    algorithms: Mapping[str, Compressor],
    sizes: Iterable[int],
    rounds: int = 5,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    make_inputs: Callable[[int], Inputs] = Inputs,
) -> dict[str, dict[int, MeasuredCost]]:
    """Return what exchanges of buckets of these sizes cost, by compressor and size; a few of the sizes are timed."""
    wanted = sorted(set(sizes))
    known = [measure_exchanges(algorithms, n, rounds, progress, make_inputs=make_inputs) for n in timed_sizes(wanted)]
    found: dict[str, dict[int, MeasuredCost]] = {}
    for name in algorithms:
        line = [one[name] for one in known]
        found[name] = {n: interpolated(line, n) for n in wanted}
    return found


def timed_sizes(sizes: Sequence[int]) -> list[int]:
    """Return which of these ascending sizes to time: all if they are few, else the ends and the middle; none too large.

    >>> timed_sizes([10, 20]), timed_sizes([10, 20, 30, 40, 10**9])
    ([10, 20], [10, 30, 8000000])
    """
    if len(sizes) > MOST_SIZES:
        sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    return sorted({min(n, LARGEST_BUCKET) for n in sizes})


def copy_seconds(n: int, rounds: int = 5) -> float:
    """Return the seconds an element that it takes to copy ``n`` float32 elements."""
    values = Inputs(n).original_gradient
    out = np.empty_like(values)
    return _seconds(lambda: np.copyto(out, values), rounds) / n


def half_casts(n: int, rounds: int = 5, device: str = "cpu") -> tuple[float, float]:
    """Return the seconds in which PyTorch makes float16 of ``n`` float32 elements, and back: Horovod's own compression.

    On a ``device`` of PyTorch.

    Raises:
        ImportError: PyTorch is not there.
    """
    import torch

    values = torch.from_numpy(Inputs(n).original_gradient).to(device)
    half = values.half()

    def ended(cast: Callable[[], object]) -> None:
        cast()
        if values.is_cuda:
            torch.cuda.synchronize(device)

    return _seconds(lambda: ended(values.half), rounds), _seconds(lambda: ended(half.float), rounds)


def _seconds(run: Callable[[], object], rounds: int) -> float:
    """Return the median of the seconds that ``run`` takes; the first call, which pays for first touches, is aside."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return median(times[1:])
