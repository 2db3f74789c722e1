"""What compression would do to the step time of a model on a cluster, and whether to compress at all.

Every candidate's step is simulated (``forecast``) on an alpha-beta model of the cluster (``cluster``), with computation
costs measured on this machine (``cost_benchmark``), for 2 to 4,096 workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hvd_compress.advisor import cost_benchmark
from hvd_compress.advisor.cluster import Cluster
from hvd_compress.advisor.costs import ExchangeCost, MeasuredCost, by_shares
from hvd_compress.advisor.device_timing import inputs_on
from hvd_compress.advisor.exchange_timing import Inputs
from hvd_compress.advisor.forecast import Forecast, bucket_sizes, compressed, uncompressed
from hvd_compress.advisor.model import Model
from hvd_compress.auto.rule import choose
from hvd_compress.compressor import Compressor
from hvd_compress.phased import phases

UNCOMPRESSED, FP16 = "Horovod uncompressed", "Horovod fp16"
WORKERS = tuple(2**power for power in range(1, 13))
"""2 to 4,096."""
MARGIN = 0.05
"""A gain smaller than this is not worth a compressor: it is below what predictions can tell."""
PHASES = ("compute", "compress", "wait", "decompress")

Forecasts = dict[str, dict[int, Forecast]]
"""By candidate, and by number of workers."""


@dataclass(frozen=True)
class Advice:
    """What to do."""

    best: str
    """The fastest candidate."""
    compress: bool
    """Whether the fastest is worth it; see ``recommended``."""
    text: str
    """A sentence or two that say so."""


def predict(
    model: Model,
    cluster: Cluster,
    algorithms: Mapping[str, Compressor],
    workers: Iterable[int] = WORKERS,
    rounds: int = 5,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    device: str | None = None,
) -> Forecasts:
    """Return forecasts of Horovod's own two candidates and of every compressor, which is measured for it: on the CPU,
    or on a ``device`` of PyTorch."""
    own = {name: bucket_sizes(model.gradients, algorithm) for name, algorithm in algorithms.items()}
    sizes = {n for layout in own.values() for n in layout}
    shares = {_share(n, cluster) for n in sizes} if _on_nodes(cluster, algorithms) else set()
    make_inputs = Inputs if device is None else inputs_on(device)
    known = cost_benchmark.for_sizes(algorithms, sizes | shares, rounds, progress, make_inputs)
    workers = sorted(set(workers))
    found: Forecasts = {UNCOMPRESSED: {}}
    found[UNCOMPRESSED] = {n: uncompressed(model, cluster, n, None) for n in workers}
    if casts := _casts(min(model.parameters, cost_benchmark.LARGEST_BUCKET), device or "cpu"):
        found[FP16] = {n: uncompressed(model, cluster, n, casts) for n in workers}
    copy = cost_benchmark.copy_seconds(min(max(sizes), cost_benchmark.LARGEST_BUCKET)) if shares else 0.0
    for name, algorithm in algorithms.items():
        found[name] = {}
        for n in workers:
            costs = {size: _cost(known[name], algorithm, size, cluster, n, copy) for size in own[name]}
            found[name][n] = compressed(model, cluster, n, algorithm, costs)
        for forecast in found[name].values():
            forecast.spread = max((cost.spread for cost in known[name].values()), default=0.0)
            forecast.selects = algorithm.selects
    return found


def _on_nodes(cluster: Cluster, algorithms: Mapping[str, Compressor]) -> bool:
    """Return whether some compressor's steps depend on which workers share a node, and several do."""
    return cluster.ranks_per_node > 1 and any(phases(algorithm).asks_for_nodes for algorithm in algorithms.values())


def _share(size: int, cluster: Cluster) -> int:
    """Return the elements of a node's share of a bucket."""
    return -(-size // cluster.ranks_per_node)


def _cost(
    known: Mapping[int, MeasuredCost], algorithm: Compressor, size: int, cluster: Cluster, workers: int, copy: float
) -> ExchangeCost:
    """Return the cost of a bucket's exchange; ``copy`` are the seconds of copying an element.

    A compressor that asks for nodes was timed where there is one, and so as the compressor that it wraps: that is the
    exchange of a share with the other nodes.
    """
    nodes = cluster.nodes(workers)
    if nodes == 1 or cluster.ranks_per_node == 1 or not phases(algorithm).asks_for_nodes:
        return known[size].at(algorithm, workers)
    share = _share(size, cluster)
    return by_shares(known[share].at(algorithm, nodes), size, share, copy * size)


def spread(found: Forecasts) -> float:
    """Return by how much the times differed that a forecast with a compressor rests on; the median of the forecasts."""
    return median([one.spread for line in found.values() for one in line.values() if one.spread] or [0.0])


def _casts(n: int, device: str) -> Callable[[int], tuple[float, float]] | None:
    """Return a function of a number of elements: the seconds in which PyTorch makes float16 of them, and back. Without
    PyTorch there is none."""
    try:
        forth, back = cost_benchmark.half_casts(n, device=device)
    except ImportError:
        return None
    return lambda size: (size / n * forth, size / n * back)


def ranked(found: Forecasts, workers: int) -> list[str]:
    """Return the candidates that work, from the fastest."""
    return sorted((name for name in found if not found[name][workers].error), key=lambda n: found[n][workers].step)


def recommended(step: Mapping[str, float]) -> str:
    """Return the candidate to use, given seconds of a step: uncompressed if nothing is faster by more than ``MARGIN``,
    Horovod's fp16 if nothing is faster than that by more than ``MARGIN``, and the fastest otherwise."""
    order = sorted(step, key=lambda name: step[name])
    mildest = [name for name in (UNCOMPRESSED, FP16) if name in step]
    mildest += [name for name in order if name not in mildest]
    return mildest[choose([step[name] for name in mildest], MARGIN)]


def advice(found: Forecasts, model: Model, workers: int) -> Advice:
    """Return what to do with so many workers."""
    order = ranked(found, workers)
    step = {name: found[name][workers].step for name in order}
    plain, best = step[UNCOMPRESSED], order[0]
    ms = f"{1000 * plain:,.1f} ms a step"
    chosen = recommended(step)
    if chosen == UNCOMPRESSED:
        why = "nothing is faster"
        if model.step > (1 - MARGIN) * plain:
            why = "the step without any communication is not much shorter"
        elif best != UNCOMPRESSED:
            why = f"the best, {best}, costs about what it saves ({1000 * step[best]:,.1f} ms)"
        return Advice(best, False, f"Do not compress with {workers:,} workers: uncompressed takes {ms}, and {why}.")
    gain = f"{plain / step[best]:.2f} times as fast as uncompressed ({1000 * step[best]:,.1f} ms, not {ms})"
    text = f"Compress with {workers:,} workers: {best} is predicted to be {gain}."
    if chosen == FP16:
        text = f"Horovod's own fp16 is enough with {workers:,} workers: {1000 * step[FP16]:,.1f} ms, uncompressed {ms}."
    elif found[best][workers].selects:
        text += f" {_under_adam(found, order, workers)}"
    losers = [name for name in order if step[name] > plain]
    if losers:
        text += f" Slower than uncompressed: {', '.join(losers)}."
    return Advice(best, True, text)


def _under_adam(found: Forecasts, order: Sequence[str], workers: int) -> str:
    """Return what else to know before the fastest candidate is taken, which sends some of the elements in a step."""
    step = {name: found[name][workers].step for name in order}
    whole = next(name for name in order if not found[name][workers].selects)
    text = f"Under Adam or AdamW a model may learn much more slowly with {order[0]}, which sends few elements in a step"
    if step[whole] < (1 - MARGIN) * step[UNCOMPRESSED]:
        return f"{text}; {whole} sends all of them ({1000 * step[whole]:,.1f} ms)."
    return f"{text}, and nothing that sends all of them pays here."


def efficiency(model: Model, step: Forecast) -> float:
    """Return the share of the time in which the model's own computation makes progress: weak scaling."""
    return model.step / step.step


def row(found: Forecasts, model: Model, name: str, workers: int) -> dict[str, Any]:
    """Return the figures of one forecast, in milliseconds."""
    one = found[name][workers]
    if one.error:
        return {"candidate": name, "workers": workers, "error": one.error}
    return {
        "candidate": name,
        "workers": workers,
        "ms": 1000 * one.step,
        "speed_up": found[UNCOMPRESSED][workers].step / one.step,
        "efficiency": efficiency(model, one),
        **{f"{phase}_ms": 1000 * getattr(one, phase) for phase in PHASES},
        "beside_ms": 1000 * one.beside,
    }


def report(found: Forecasts, model: Model, cluster: Cluster, workers: int, warning: str) -> dict[str, Any]:
    """Return everything as one JSON document has it; ``warning`` as ``machine.warning`` returns it."""
    said = advice(found, model, workers)
    return {
        "model": {"parameters": model.parameters, "tensors": len(model.gradients), "step_ms": 1000 * model.step},
        "cluster": cluster.as_json(),
        "workers": workers,
        "compress": said.compress,
        "best": said.best,
        "advice": said.text,
        "warning": warning,
        "ranking": ranked(found, workers),
        "rows": [row(found, model, name, n) for name in found for n in found[name]],
    }
