"""What compression would do to the step time of a model on a cluster, and whether to compress at all.

Every candidate's step is simulated (``forecast``) on an alpha-beta model of the cluster (``cluster``), with computation
costs measured on this machine (``costs``), for 2 to 4,096 workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvd_compress.cli import costs, forecast
from hvd_compress.cli.cluster import Cluster
from hvd_compress.compressor import Compressor

if TYPE_CHECKING:
    from rich.table import Table

UNCOMPRESSED, FP16 = "Horovod uncompressed", "Horovod fp16"
WORKERS = tuple(2**power for power in range(1, 13))
"""2 to 4,096."""
MARGIN = 0.05
"""A gain smaller than this is not worth a compressor: it is below what predictions can tell."""
SHOWN = (2, 8, 32, 128, 512, 2048)
PHASES = ("compute", "compress", "wait", "decompress")

Forecasts = dict[str, dict[int, forecast.Forecast]]


@dataclass(frozen=True)
class Advice:
    """``best``: the fastest; ``compress``: whether that is worth it; ``text``: a sentence or two that say so."""

    best: str
    compress: bool
    text: str


def predict(
    model: forecast.Model,
    cluster: Cluster,
    algorithms: Mapping[str, Compressor],
    workers: Iterable[int] = WORKERS,
    rounds: int = 5,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Forecasts:
    """Forecasts of Horovod's own two and of every compressor, by number of workers. Measures the compressors."""
    sizes = {n for algorithm in algorithms.values() for n in forecast.bucket_sizes(model.tensors, algorithm)}
    known = costs.for_sizes(algorithms, sizes, rounds, progress)
    workers = sorted(set(workers))
    found: Forecasts = {UNCOMPRESSED: {}}
    found[UNCOMPRESSED] = {n: forecast.direct(model, cluster, n, None) for n in workers}
    if casts := _casts(min(model.parameters, costs.LARGEST)):
        found[FP16] = {n: forecast.direct(model, cluster, n, casts) for n in workers}
    for name, algorithm in algorithms.items():
        found[name] = {
            n: forecast.compressed(
                model, cluster, n, algorithm, {size: m.at(algorithm, n) for size, m in known[name].items()}
            )
            for n in workers
        }
    return found


def _casts(n: int) -> Callable[[int], tuple[float, float]] | None:
    """Seconds in which PyTorch makes float16, and back, of so many elements; None without PyTorch."""
    try:
        forth, back = costs.casts(n)
    except ImportError:
        return None
    return lambda size: (size / n * forth, size / n * back)


def ranked(found: Forecasts, workers: int) -> list[str]:
    """The candidates that work, from the fastest."""
    return sorted((name for name in found if not found[name][workers].error), key=lambda n: found[n][workers].step)


def advice(found: Forecasts, model: forecast.Model, workers: int) -> Advice:
    """What to do with so many workers."""
    order = ranked(found, workers)
    step = {name: found[name][workers].step for name in order}
    plain, best = step[UNCOMPRESSED], order[0]
    ms = f"{1000 * plain:,.1f} ms a step"
    if step[best] > (1 - MARGIN) * plain:
        why = (
            "the step without any communication is not much shorter"
            if model.step > (1 - MARGIN) * plain
            else f"the best, {best}, costs about what it saves ({1000 * step[best]:,.1f} ms)"
        )
        return Advice(best, False, f"Do not compress with {workers:,} workers: uncompressed takes {ms}, and {why}.")
    gain = f"{plain / step[best]:.2f} times as fast as uncompressed ({1000 * step[best]:,.1f} ms, not {ms})"
    text = f"Compress with {workers:,} workers: {best} is predicted to be {gain}."
    if best == FP16 or (FP16 in step and step[FP16] * (1 - MARGIN) <= step[best]):
        text = f"Horovod's own fp16 is enough with {workers:,} workers: {1000 * step[FP16]:,.1f} ms, uncompressed {ms}."
    losers = [name for name in order if step[name] > plain]
    if losers:
        text += f" Slower than uncompressed: {', '.join(losers)}."
    return Advice(best, True, text)


def efficiency(model: forecast.Model, step: forecast.Forecast) -> float:
    """Of the time, the share in which the model's own computation makes progress: weak scaling."""
    return model.step / step.step


def row(found: Forecasts, model: forecast.Model, name: str, workers: int) -> dict[str, Any]:
    """The figures of one forecast; milliseconds."""
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


def report(found: Forecasts, model: forecast.Model, cluster: Cluster, workers: int) -> dict[str, Any]:
    """What ``--json`` prints."""
    said = advice(found, model, workers)
    return {
        "model": {"parameters": model.parameters, "tensors": len(model.tensors), "step_ms": 1000 * model.step},
        "cluster": cluster.as_json(),
        "workers": workers,
        "compress": said.compress,
        "best": said.best,
        "advice": said.text,
        "ranking": ranked(found, workers),
        "rows": [row(found, model, name, n) for name in found for n in found[name]],
    }


def table(found: Forecasts, model: forecast.Model, workers: int) -> Table:
    """The ranking with so many workers."""
    from rich.table import Table

    result = Table(
        title=f"{model.parameters:,} parameters, {1000 * model.step:,.1f} ms a step without communication, "
        f"{workers:,} workers: predicted",
        caption="beside: compression, on a thread of its own, while the backward pass goes on; not part of the step",
    )
    result.add_column("candidate")
    for column in ("step", "speed-up", "efficiency", *PHASES, "beside"):
        result.add_column(column, justify="right")
    for name in ranked(found, workers):
        one = row(found, model, name, workers)
        result.add_row(
            name,
            f"{one['ms']:,.1f} ms",
            f"{one['speed_up']:.2f}x",
            f"{100 * one['efficiency']:.0f} %",
            *(f"{one[f'{phase}_ms']:,.1f} ms" for phase in (*PHASES, "beside")),
        )
    for name in found:
        if found[name][workers].error:
            result.add_row(name, f"[red]{found[name][workers].error}[/]")
    return result


def scaling(found: Forecasts, model: forecast.Model) -> Table:
    """Efficiency against the number of workers."""
    from rich.table import Table

    result = Table(title="predicted scaling efficiency, %, by number of workers")
    result.add_column("candidate")
    shown = [n for n in SHOWN if n in found[UNCOMPRESSED]]
    for n in shown:
        result.add_column(f"{n:,}", justify="right")
    for name in found:
        cells = [found[name][n] for n in shown]
        result.add_row(name, *("-" if c.error else f"{100 * efficiency(model, c):.0f}" for c in cells))
    return result


def plot(found: Forecasts, model: forecast.Model, path: Path) -> None:
    """Step time and scaling efficiency against workers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (time, share) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for number, (name, line) in enumerate(found.items()):
        shown = {n: one for n, one in line.items() if not one.error}
        style = {"marker": "os^vD*PX<>"[number % 10], "ms": 5, "label": name, "color": f"C{number % 10}"}
        style["linestyle"] = "--" if name in (UNCOMPRESSED, FP16) else "-"
        time.plot(list(shown), [1000 * one.step for one in shown.values()], **style)
        share.plot(list(shown), [100 * efficiency(model, one) for one in shown.values()], **style)
    time.axhline(1000 * model.step, color="black", linewidth=0.8)
    time.set(xscale="log", yscale="log", xlabel="workers", ylabel="ms a step, predicted")
    share.set(xscale="log", ylim=(0, 105), xlabel="workers", ylabel="scaling efficiency, %, predicted")
    for axes in (time, share):
        axes.set_xscale("log", base=2)
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(f"{model.parameters:,} parameters, {1000 * model.step:,.1f} ms a step without communication")
    figure.savefig(path, dpi=120)
    plt.close(figure)
