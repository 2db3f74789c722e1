"""The commands and their options; what they do is in the module of each command."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

import hvd_compress

EXIT_CODES = (
    "Exit status: 0 all is well; 1 something does not work or is missing; 2 wrong usage; 3 (advise) do not compress."
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gradient compression for Horovod: what is there, what it costs, what it does to a training.",
    epilog=EXIT_CODES,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture (needs matplotlib).")]


class Framework(StrEnum):
    """What an exchange can be tried under."""

    torch = "torch"
    tensorflow = "tensorflow"


def console() -> Console:
    """For results. What is not a terminal gets lines long enough for the tables."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False)


def messages() -> Console:
    """For what is no result."""
    return Console(stderr=True, highlight=False)


def print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def fail(message: object, status: int = 2) -> NoReturn:
    """End with a line that says why."""
    messages().print(f"hvd-compress: {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(status)


def check_plot(path: Path | None) -> None:
    """Fail now rather than when all has been measured."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        fail(f"--plot {path}: {path.parent} is not a folder")
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        fail(f"--plot needs matplotlib ({error}): pip install 'hvd-compress[plot]'", 1)
    if path.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        fail(f"--plot {path}: the name must end with .png, .pdf, .svg or another that matplotlib knows")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        console().print(f"hvd-compress {hvd_compress.__version__}")
        raise typer.Exit


@app.command(epilog="Exit status: 0 all is well (notes do not count); 1 something does not work; 2 wrong usage.")
def doctor(
    framework: Annotated[
        list[Framework] | None, typer.Option(help="Try exchanges under this one only; may be repeated.")
    ] = None,
    exchange: Annotated[bool, typer.Option(help="Try exchanges between two ranks (seconds each).")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which an exchange is given up.")] = 120,
    json_: Json = False,
) -> None:
    """Say what is there and works, and what to do about what does not.

    Looks at the frameworks, Horovod, MPI, the kernels and the GPU, and makes two ranks on this machine exchange a
    compressed gradient, with mpirun and with horovodrun --gloo.
    """
    from hvd_compress.cli import doctor as examination

    out, found = console(), []
    colours = {examination.OK: "green", examination.NOTE: "yellow", examination.BROKEN: "red"}
    names = [chosen.value for chosen in framework or list(Framework)]
    with messages().status("...") as status:
        for finding in examination.examine(
            names, exchange=exchange, limit=timeout, say=lambda what: status.update(f"{what} ...")
        ):
            found.append(finding)
            if not json_:
                mark = f"[{colours[finding.status]}]{finding.status:7}[/]"
                out.print(f"{mark}{finding.name}: {escape(finding.detail)}", soft_wrap=True)
                if finding.advice:
                    out.print(f"       → {escape(finding.advice)}", soft_wrap=True)
    broken = sum(finding.status == examination.BROKEN for finding in found)
    if json_:
        print_json({"works": not broken, "findings": [vars(finding) for finding in found]})
    else:
        out.print(f"{broken} of {len(found)} do not work" if broken else "all is well")
    if broken:
        raise typer.Exit(1)


@app.command("list", epilog="Exit status: 0 done; 1 the compressor cannot be loaded; 2 there is no such compressor.")
def list_(
    name: Annotated[str | None, typer.Argument(help="Tell all about this compressor.", show_default=False)] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME", help="Print a configuration, YAML with comments, to start from."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the compressors, their parameters, defaults and a word of advice."""
    from hvd_compress.cli import catalogue, listing

    if name and config:
        fail("give a NAME, or --config NAME")
    try:
        if config:
            text = catalogue.configuration(config)
            if json_:
                print_json({"name": config, "text": text, "config": listing.parsed(text)})
            else:
                sys.stdout.write(text)
            return
        found = [catalogue.entry(name)] if name else catalogue.entries()
    except ValueError as error:
        fail(error)
    if json_:
        described = [listing.as_json(entry) for entry in found]
        print_json(described[0] if name else described)
    elif name:
        listing.details(console(), found[0])
    else:
        console().print(listing.table(found))
        console().print(
            "hvd-compress list NAME: all about one; hvd-compress list --config NAME: a YAML file to start from"
        )
    if name and found[0].error:
        raise typer.Exit(1)


@app.command(epilog="Exit status: 0 done; 1 the kernels or what --plot needs are missing; 2 wrong usage.")
def bench(
    compressor: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMPRESSOR]...", help="Names or YAML files.", show_default="all, as they come"),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Elements of a bucket; may be repeated.", show_default="262144, 4000000")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Of the sparse kernels: fraction of the elements.")] = 0.01,
    rounds: Annotated[int, typer.Option(min=1, help="At 10 million elements and more; smaller ones get more.")] = 5,
    kernels: Annotated[bool, typer.Option(help="Time single kernels, too.")] = True,
    torch: Annotated[bool, typer.Option(help="Let PyTorch do the unit's addition, if it is there.")] = True,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Time compressors and kernels on this machine, on one thread.

    In units of the least that error feedback could cost: one pass that adds the gradient to the residual. Ratios are
    medians over rounds in which everything takes its turn.
    """
    check_plot(plot)
    try:
        from hvd_compress.cli import bench as benchmark

        sizes = benchmark.sizes(size or ["262144", "4000000"])
        algorithms = benchmark.algorithms(compressor or None)
        if not 0 < ratio <= 1:
            raise ValueError(f"--ratio must be in (0, 1], got {ratio}")
        about = benchmark.machine()
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    except ImportError as error:
        fail(error, 1)
    rows: list[dict[str, Any]] = []
    with_torch = torch and benchmark.has_torch()
    for n in sizes:
        rows += benchmark.run(n, algorithms, ratio if kernels else None, rounds, with_torch, progress(f"n = {n:,}"))
    if with_torch:
        about = benchmark.machine()
    if plot:
        benchmark.plot(rows, about, plot)
    if json_:
        print_json({"machine": about, "rows": rows})
        return
    console().print(benchmark.table(rows))
    console().print(", ".join(f"{key}: {value}" for key, value in about.items()))
    if plot:
        console().print(f"picture: {plot}", soft_wrap=True)


def progress(title: str) -> Any:
    """A bar for an iteration, where somebody can see it."""
    from rich.progress import track

    return lambda sequence: track(sequence, title, console=messages(), transient=True, disable=not sys.stderr.isatty())


@app.command(
    epilog="Exit status: 0 compression pays here; 3 it does not; 1 PyTorch, Horovod or matplotlib is missing; "
    "2 wrong usage."
)
def advise(
    compressor: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMPRESSOR]...", help="Configurations, names or YAML files.", show_default="all"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="A torch module, or what makes one.", show_default=False)
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="SHAPE", help="Of a batch, such as 32,3,224,224: time the model.")
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="The input is whole numbers below this.")] = None,
    parameters: Annotated[str | None, typer.Option(help="Instead of --model: their number, such as 25.6e6.")] = None,
    step_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of a step without communication, such as 120ms.")
    ] = None,
    workers: Annotated[int, typer.Option(min=2, max=4096, help="In the cluster: rank for so many.")] = 8,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of a worker's link: 10gbit.")] = None,
    latency: Annotated[str, typer.Option(metavar="TIME", help="Of a message.")] = "50us",
    overhead: Annotated[str, typer.Option(metavar="TIME", help="Of a collective under Horovod.")] = "1ms",
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the cluster instead: start this with mpirun on two hosts or more."),
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of timing the compressors.")] = 5,
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Predict step times with 2 to 4,096 workers, and say whether to compress.

    For a model (--model with --input or --step-time; or --parameters with --step-time) and a cluster (--bandwidth and
    --latency, or --measure). What compressors cost is measured on this machine, on one thread.
    """
    check_plot(plot)
    try:
        from hvd_compress.cli import advise as advising
        from hvd_compress.cli import costs, question

        algorithms = costs.compressors(compressor)
        subject = question.model(model, input_, vocabulary, parameters, step_time)
        cluster = question.cluster(bandwidth, latency, overhead, measure)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    except (ImportError, RuntimeError) as error:
        fail(error, 1 if isinstance(error, ImportError) else 2)
    if cluster is None:  # another rank speaks
        raise typer.Exit
    found = advising.predict(
        subject, cluster, algorithms, {workers, *advising.WORKERS}, rounds, progress("compressors")
    )
    said = advising.advice(found, subject, workers)
    if plot:
        advising.plot(found, subject, plot)
    if json_:
        print_json(advising.report(found, subject, cluster, workers))
    else:
        console().print(advising.table(found, subject, workers))
        console().print(advising.scaling(found, subject))
        console().print(said.text, soft_wrap=True)
        if plot:
            console().print(f"picture: {plot}", soft_wrap=True)
    if not said.compress:
        raise typer.Exit(3)


@app.command(
    "lgc-train", epilog="Exit status: 0 done; 1 torch or safetensors is missing; 2 wrong usage, or no vectors."
)
def lgc_train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What LGC(record=DIR) wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Weights, for LGC(weights=FILE).")],
    variant: Annotated[str, typer.Option(help="allreduce or gather, as the compressor's.")] = "allreduce",
    encoder: Annotated[str, typer.Option(help="Channels of the encoder, as the compressor's.")] = "64,128,256,64,4",
    decoder: Annotated[str, typer.Option(help="Channels of the decoder, as the compressor's.")] = "32,64,128,32",
    innovation: Annotated[float, typer.Option(help="Gather variant: as the compressor's.")] = 0.1,
    batches: Annotated[int, typer.Option(min=1, help="At most; fewer if it stops to improve.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and of the batches.")] = 0,
    json_: Json = False,
) -> None:
    """Train LGC's autoencoder on recorded vectors.

    Says what it is worth on vectors that were held out: its relative squared error, beside that of float16 top-k for
    the same bytes.
    """
    try:
        from hvd_compress.lgc import trainer
        from hvd_compress.lgc.architecture import VARIANTS
        from hvd_compress.lgc.autoencoder import Autoencoder
        from hvd_compress.lgc.compressor import architecture
    except ImportError as error:
        fail(f"{error}: pip install 'hvd-compress[lgc]'", 1)
    try:
        if variant not in VARIANTS:
            raise ValueError(f"--variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        down, up = (tuple(int(width) for width in text.split(",")) for text in (encoder, decoder))
        made = architecture(variant, down, up, innovation)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: {out.parent} is not a folder")
        outcome = trainer.train_offline(folder, made, batches, seed)
        out.write_bytes(outcome.weights)
    except (OSError, TypeError, ValueError) as error:
        fail(error)
    result = trainer.describe(outcome, Autoencoder(made).count())
    if json_:
        print_json(result)
        return
    for key, value in result.items():
        if value not in (None, ""):
            console().print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}", soft_wrap=True)
    console().print(f"weights: {out}", soft_wrap=True)


@app.command(epilog="Exit status: 0 done; 1 what --plot needs is missing; 2 wrong usage, or no record.")
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of records, or records: what the examples' --record wrote."),
    ],
    plot: Plot = None,
    json_: Json = False,
) -> None:
    """Compare training runs: accuracy, bytes and time, from their records.

    Sizes are compared with the first run of each experiment (same data, model and ranks): of files the first given, of
    a folder the one that sends most. The picture has accuracy against bytes and against time.
    """
    from hvd_compress.cli import compare as comparison
    from hvd_compress.cli import records

    check_plot(plot)
    try:
        runs, others = records.collect(paths)
    except ValueError as error:
        fail(error)
    if plot:
        comparison.picture(runs, plot)
    if json_:
        print_json(comparison.report(runs))
        return
    if others:
        messages().print(f"left out, not records: {escape(', '.join(others))}", soft_wrap=True)
    for group in records.experiments(runs):
        console().print(comparison.table(group))
    if plot:
        console().print(f"picture: {plot}", soft_wrap=True)
