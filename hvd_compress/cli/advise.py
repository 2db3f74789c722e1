"""``hvd-compress advise``: step times to expect of a model on a cluster, and whether to compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from hvd_compress.advisor import advice, candidates, device_timing, machine
from hvd_compress.advisor.advice import FP16, PHASES, UNCOMPRESSED, Forecasts, efficiency, ranked, row
from hvd_compress.advisor.model import Model
from hvd_compress.cli import question
from hvd_compress.cli.output import Json, Plot, console, fail, messages, print_json, print_table, progress
from hvd_compress.cli.pictures import MOST_LINES, check_plot, line_styles, name_lines, pyplot, save

EXIT_STATUS = (
    "Exit status: 0 compression pays here; 3 it does not; 1 PyTorch, Horovod or matplotlib is missing; 2 wrong usage."
)
SHOWN = (2, 8, 32, 128, 512, 2048)
"""Numbers of workers in the table of efficiencies."""


def advise(
    compressor: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMPRESSOR]...",
            help="Compare these: names of configurations or compressors, MODULE:CLASS, or YAML files.",
            show_default="all",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Give advice for this model: a torch module, or a function or class that makes one.",
            show_default=False,
        ),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Time the model on this machine, with a batch of this shape, such as 32,3,224,224.",
        ),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Fill the batch with whole numbers below this one.")
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            help="Give advice for a model with this number of parameters, such as 25.6e6, instead of --model."
        ),
    ] = None,
    step_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Assume that a step without communication takes this time, such as 120ms."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=2, max=4096, help="Rank the candidates for a cluster of this number of workers.")
    ] = 8,
    bandwidth: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Assume that the link of a worker has this rate, such as 10gbit or 10Gb/s."),
    ] = None,
    latency: Annotated[
        str, typer.Option(metavar="TIME", help="Assume that a message takes this time, apart from its bytes.")
    ] = "50us",
    overhead: Annotated[
        str, typer.Option(metavar="TIME", help="Assume that Horovod takes this time to agree on a collective.")
    ] = "1ms",
    ranks_per_node: Annotated[
        int,
        typer.Option(min=1, help="Assume that this number of workers share a node and its link to the other nodes."),
    ] = 1,
    local_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Assume that a worker's link within its node has this rate.")
    ] = None,
    local_latency: Annotated[
        str,
        typer.Option(metavar="TIME", help="Assume that a message within a node takes this time, apart from its bytes."),
    ] = "5us",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure the cluster instead; start the command with mpirun on two or more hosts."
        ),
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Time the compressors in this number of rounds.")] = 5,
    device: Annotated[
        str | None,
        typer.Option(help="Measure the cost of compressors on this CUDA device, such as cuda."),
    ] = None,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Predict step times with 2 to 4,096 workers, and say whether to compress.

    Describe the model by --model with --input or --step-time, or by --parameters with --step-time. Describe the cluster
    by --bandwidth and --latency, or measure it with --measure. The cost of compressors is measured on this machine, on
    one thread, or with --device on its GPU; --input times the model on the CPU.
    """
    check_plot(plot)
    load = machine.load()
    try:
        algorithms = candidates.for_advice(compressor)
        if device is not None:
            device_timing.inputs_on(device)
            algorithms = candidates.served(algorithms, named=compressor is not None)
        subject = question.model(model, input_, vocabulary, parameters, step_time)
        cluster = question.cluster(bandwidth, latency, overhead, measure)
        if cluster is not None:
            cluster = question.nodes(cluster, ranks_per_node, local_bandwidth, local_latency)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    except (ImportError, RuntimeError) as error:
        fail(error, 1 if isinstance(error, ImportError) else 2)
    if cluster is None:  # another rank speaks
        raise typer.Exit
    found = advice.predict(
        subject, cluster, algorithms, {workers, *advice.WORKERS}, rounds, progress("compressors"), device
    )
    said = advice.advice(found, subject, workers)
    warning = machine.warning(load, advice.spread(found))
    if plot:
        picture(found, subject, workers, plot)
    if json_:
        print_json(advice.report(found, subject, cluster, workers, warning))
    else:
        print_table(table(found, subject, workers))
        print_table(scaling(found, subject))
        console().print(said.text, soft_wrap=True)
        if warning:
            messages().print(f"Warning: {warning}", soft_wrap=True)
        if plot:
            console().print(f"picture: {plot}", soft_wrap=True)
    if not said.compress:
        raise typer.Exit(3)


def table(found: Forecasts, model: Model, workers: int) -> Table:
    """Return the ranking with so many workers."""
    result = Table(
        title=f"{model.parameters:,} parameters, {1000 * model.step:,.1f} ms a step without communication, "
        f"{workers:,} workers: predicted",
        caption="beside: compression, on a thread of its own, while the backward pass goes on; not part of the step",
    )
    result.add_column("candidate")
    for column in ("step", "speed-up", "efficiency", *PHASES, "beside"):
        result.add_column(column, justify="right", no_wrap=True)
    for name in ranked(found, workers):
        one = row(found, model, name, workers)
        result.add_row(
            escape(name),
            f"{one['ms']:,.1f} ms",
            f"{one['speed_up']:.2f}x",
            f"{100 * one['efficiency']:.0f} %",
            *(f"{one[f'{phase}_ms']:,.1f} ms" for phase in (*PHASES, "beside")),
        )
    for name in found:
        if error := found[name][workers].error:
            result.add_row(escape(name), "-")
            result.caption = f"{result.caption}\n{escape(name)} does not work: {escape(error)}"
    return result


def scaling(found: Forecasts, model: Model) -> Table:
    """Return efficiency against the number of workers."""
    result = Table(title="predicted scaling efficiency, %, by number of workers")
    result.add_column("candidate")
    shown = [n for n in SHOWN if n in found[UNCOMPRESSED]]
    for n in shown:
        result.add_column(f"{n:,}", justify="right", no_wrap=True)
    for name in found:
        cells = [found[name][n] for n in shown]
        result.add_row(escape(name), *("-" if c.error else f"{100 * efficiency(model, c):.0f}" for c in cells))
    return result


def picture(found: Forecasts, model: Model, workers: int, path: Path) -> None:
    """Draw step time and scaling efficiency against workers: of what is uncompressed, and of the best with so many."""
    fixed = [name for name in (UNCOMPRESSED, FP16) if name in found]
    best = [name for name in ranked(found, workers) if name not in fixed]
    styles = line_styles([*fixed, *best][:MOST_LINES])
    figure, (time, share) = pyplot().subplots(1, 2, figsize=(13, 6), layout="constrained")
    for name, style in styles.items():
        shown = {n: one for n, one in found[name].items() if not one.error}
        style = {**style, "ms": 5, "label": name, "linestyle": "--" if name in fixed else "-"}
        time.plot(list(shown), [1000 * one.step for one in shown.values()], **style)
        share.plot(list(shown), [100 * efficiency(model, one) for one in shown.values()], **style)
    time.axhline(1000 * model.step, color="black", linewidth=0.8)
    time.set(xscale="log", yscale="log", xlabel="workers", ylabel="ms a step, predicted")
    share.set(xscale="log", ylim=(0, 105), xlabel="workers", ylabel="scaling efficiency, %, predicted")
    for axes in (time, share):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(visible=True, alpha=0.3)
    name_lines(share)
    figure.suptitle(f"{model.parameters:,} parameters, {1000 * model.step:,.1f} ms a step without communication")
    save(figure, path)
