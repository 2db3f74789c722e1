"""Step time of PyTorch training, against the same step without any communication, for every compressor and its rivals.

    mpirun -np 2 python benchmarks/end_to_end.py --smoke --out build/smoke.json
    launch/emulate.sh --hosts 2 --rate unlimited -- python benchmarks/end_to_end.py --data-dir PTB \\
        --rates 10mbit 100mbit 1gbit 10gbit unlimited --out build/end_to_end.json
    python benchmarks/end_to_end_report.py build/end_to_end.json --out docs/results/end_to_end

All candidates of a model run in one process, on the same weights (the learning rate is 0), one after the other: every
round each has a turn of some steps, in a random order that is the same on all ranks. A step's time is the slowest
rank's; a cell's is the median of its steps, and figures are ratios of those medians. A turn's first step is not counted
if it is short. A candidate has five turns, or fewer if it has had its ``--seconds``: slow links get few steps. With
``--auto-seconds``, more rounds follow of ``Auto`` and those of its own candidates that may be the fastest. On a machine
that others use too, ``--fastest 0.5`` lets the fastest half of the steps count, and of what predictions are made from:
others only ever take time. ``others`` says how many processors they used.

The rates of ``--rates`` are set in turn, by the ranks, on their own links: that needs two hosts of launch/emulate.sh,
started with ``--rate unlimited``. Without ``--rates`` the link is as it is. Before the cells of a rate, what
``hvd-compress advise`` predicts from is measured too: collectives, and the compressors' computation.

Other hosts than two keep the link that they are started with, and ``--link-name`` says which that is: one run for every
rate, with the same ``--out``. docs/many-workers.md has an example.

``--out`` is written after every rate, and what it has already is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress.advisor import cost_benchmark, forecast, machine, model, network_benchmark
from hvd_compress.advisor.candidates import for_advice
from hvd_compress.compressor import Compressor

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
import links
import quiet
import workloads
from candidates import ALONE, AUTO, DDP, POWER, RIVALS, SCOPES, Candidate, Profile
from rounds import CALM_WITHIN, Rounds

SCHEMA = 1
STUDY: dict[str, Callable[[], Compressor]] = {
    "QSGDMaxNorm 2": lambda: hvd_compress.QSGDMaxNorm(2),
    "QSGDMaxNorm 4": lambda: hvd_compress.QSGDMaxNorm(4),
    "QSGDMaxNorm 6": lambda: hvd_compress.QSGDMaxNorm(6),
    "QSGDMaxNorm 8": lambda: hvd_compress.QSGDMaxNorm(8),
    "QSGDMaxNormMultiScale (2, 6)": lambda: hvd_compress.QSGDMaxNormMultiScale((2, 6)),
    "QSGDMaxNormMultiScale (4, 8)": lambda: hvd_compress.QSGDMaxNormMultiScale((4, 8)),
    "RandKMaxNorm 0.1, 8": lambda: hvd_compress.RandKMaxNorm(0.1, 8),
    "RandKMaxNormMultiScale 0.1, (4, 8)": lambda: hvd_compress.RandKMaxNormMultiScale(0.1, (4, 8)),
}
"""The quantizers of launch/study_quantizers.sh, under its names: ``--candidates study``."""
SMOKE = ("dense", "sidco", "qsgd-maxnorm")

AS_IT_IS = "as it is"
PHASES = ("compute", "compress", "wait", "decompress")


def row(candidate: Candidate, alone: Candidate, label: str, rate: str) -> dict[str, Any]:
    """A cell of the matrix. Milliseconds are medians over steps; ``ratio`` is to the step without communication."""

    def ms(key: str, of: Candidate = candidate) -> float:
        return 1000 * median(step[key] for step in of.counted)

    found = {
        "model": label,
        "rate": rate,
        "candidate": candidate.name,
        "ms": ms("step"),
        "ratio": ms("step") / ms("step", alone),
        "steps": len(candidate.counted),
        "all_steps": len(candidate.steps),
        "others": round(median(step["others"] for step in candidate.counted), 2),
        "phases_ms": {phase: ms(phase) for phase in PHASES},
        "turns_ms": {n: [round(1000 * step["step"], 2) for step in turn] for n, turn in candidate.turns.items()},
    }
    if candidate.name in (DDP, POWER):  # all within the backward pass: what the step takes more than without
        compute = ms("step", alone)
        found["phases_ms"] = dict.fromkeys(PHASES, 0.0) | {"compute": compute, "wait": ms("step") - compute}
    if candidate.name == AUTO:
        found["auto"] = candidate.compressor.stats()["auto"]
    if candidate.compressor is not None:
        found["sent_mb_by_scope"] = {scope: median(s[scope] for s in candidate.counted) / 1e6 for scope in SCOPES}
        found["sent_mb"] = sum(found["sent_mb_by_scope"].values())
        found["compressor"] = repr(candidate.compressor)
    return found


def measure_costs(
    chosen: dict[str, Compressor], profile: dict[str, Any], rounds: int, share: float
) -> list[dict[str, Any]]:
    """The computation of the compressors' exchanges, for every size of bucket that the model has; the ranks' mean."""
    gradients = model.gradients_of(profile)
    sizes = sorted({size for c in chosen.values() for size in forecast.bucket_sizes(gradients, c)})
    found = []
    for n in sizes:
        hvd.barrier()
        measured = cost_benchmark.measure_exchanges(chosen, n, rounds, share=share)
        own = {name: asdict(cost) for name, cost in measured.items()}
        forth, back = cost_benchmark.half_casts(n)
        everyone = hvd.allgather_object((own, forth, back))
        found += [{"compressor": name, **_mean([ranks[0][name] for ranks in everyone])} for name in chosen]
        found.append({"casts": n, "forth": _mean([r[1] for r in everyone]), "back": _mean([r[2] for r in everyone])})
    return found


def _mean(values: list[Any]) -> Any:
    """Element by element, of nested dicts and lists of numbers that are alike."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, (list, tuple)):
        return [_mean(list(column)) for column in zip(*values, strict=True)]
    return sum(values) / len(values) if isinstance(first, float) else first


def run_model(label: str, chosen: dict[str, Compressor], names: list[str], options: Any, record: Record) -> None:
    """All rates of one model."""
    names_of = {rate: options.link_name if rate == AS_IT_IS else rate for rate in options.rates}
    missing = [rate for rate in options.rates if not record.has(label, names_of[rate])]
    if not missing:
        return
    batch = options.batch or workloads.WORKLOADS[label].batch
    batches = workloads.batches(label, batch, hvd.rank(), options.text)
    torch.manual_seed(0)
    weights = [parameter.data for parameter in workloads.WORKLOADS[label].make().parameters()]
    fixed = [name for name in names if name != AUTO]
    candidates = [Candidate(name, label, chosen.get(name), weights, options.fastest) for name in fixed]
    shown = label + (workloads.SYNTHETIC if label in workloads.TEXT_MODELS and options.text is None else "")
    record.say(f"{shown}: warming up")
    for candidate in candidates:  # as fast as the link can: buckets are laid out, PowerSGD's first steps are dense
        candidate.turn(batches, 3)
    profile = Profile(candidates[0]).measure(batches)
    profile = hvd.broadcast_object(profile, 0)
    record.say(f"{shown}: compressors")
    quiet.wait(options.calm)
    cost = measure_costs(chosen, profile, options.cost_rounds, options.fastest)
    record.add("models", {"model": shown, "batch": batch, "profile": profile, "costs": cost})
    for rate in missing:
        if rate != AS_IT_IS:
            options.link.set(rate)
        name = names_of[rate]
        if not record.knows(name):
            record.say(f"{name}: collectives")
            quiet.wait(options.calm)
            record.add("links", {"rate": name, **network_benchmark.measure_network(*options.limits, options.fastest)})
        racing = list(candidates)
        if options.auto:  # which begins anew on every link
            record.say(f"{shown}, {name}: {AUTO} chooses")
            racing.append(Candidate(AUTO, label, hvd_compress.Auto(), weights, options.fastest))
            racing[-1].choose(batches)

        def say(what: str, at: str = f"{shown}, {name}") -> None:
            record.say(f"{at}: {what}")

        rounds = Rounds(batches, say, options.wait)
        rounds.run(racing, options.seconds)
        if options.auto:
            rounds.go_on(racing, options.auto_seconds)
        for candidate in racing:
            record.add("rows", row(candidate, candidates[0], shown, name))
        record.save()
    if missing[-1] != AS_IT_IS:
        options.link.set("unlimited")


class Record:
    """The JSON file, and what is said meanwhile; on rank 0."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self.content: dict[str, Any] = {"schema": SCHEMA, "settings": settings, "machine": {}}
        self.content |= {"models": [], "links": [], "rows": []}
        problem = ""
        if path is not None and path.exists() and hvd.rank() == 0:
            before = json.loads(path.read_text())
            if before.get("settings") != settings:
                problem = f"{path} is of a run with other options: {before.get('settings')}; move it away"
            self.content = before
        self.content, problem = hvd.broadcast_object((self.content, problem), 0)
        if problem:
            raise SystemExit(problem)

    def has(self, label: str, rate: str) -> bool:
        return any(
            cell["model"].removesuffix(workloads.SYNTHETIC) == label and cell["rate"] == rate
            for cell in self.content["rows"]
        )

    def knows(self, rate: str) -> bool:
        return any(link["rate"] == rate for link in self.content["links"])

    def add(self, kind: str, what: dict[str, Any]) -> None:
        """A model's or a link's measurements, or a cell; in the place of what was there about the same."""
        keys = [key for key in ("model", "rate", "candidate") if key in what]
        others = [other for other in self.content[kind] if any(other[key] != what[key] for key in keys)]
        self.content[kind] = [*others, what]

    def save(self) -> None:
        if hvd.rank() == 0 and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".part")
            partial.write_text(json.dumps(self.content, indent=1))
            partial.replace(self._path)

    def say(self, what: str) -> None:
        if hvd.rank() == 0:
            print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=[AS_IT_IS], metavar="RATE", help="10mbit, 1gbit, unlimited ...")
    parser.add_argument("--link-name", default=AS_IT_IS, metavar="RATE", help="what the figures call the link as it is")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a cell, about")
    parser.add_argument(
        "--fastest", type=float, default=1.0, metavar="SHARE", help="of the steps, the share that counts"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=CALM_WITHIN,
        help="seconds that a turn waits at most for other programs to leave the machine alone",
    )
    parser.add_argument("--batch", type=int, help="of every model, instead of its own")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--models", nargs="+", choices=list(workloads.WORKLOADS), default=list(workloads.MATRIX))
    parser.add_argument(
        "--candidates", nargs="+", metavar="NAME", help="compressors: configurations, YAML files; or study; default all"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of ptb.train.txt or ptb.valid.txt")
    parser.add_argument("--synthetic-tokens", action="store_true", help="no text: tokens at random, said in the labels")
    parser.add_argument("--auto", action="store_true", help="hvd_compress.Auto, too, which chooses on every link anew")
    parser.add_argument(
        "--auto-seconds", type=float, default=0.0, help="of more rounds of Auto, and of each of its candidates"
    )
    parser.add_argument("--ddp", action="store_true", help="torch's data parallelism without compression, too")
    parser.add_argument("--smoke", action="store_true", help="seconds: the ResNet, few candidates, few steps")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; what it has is not measured again")
    options = parser.parse_args()
    if options.smoke:
        options.models, options.seconds = ["ResNet"], 0.3
        options.candidates = options.candidates or list(SMOKE)
    options.limits, options.cost_rounds, options.calm = ((0.02, 0.02), 1, 0) if options.smoke else ((0.3, 10.0), 4, 10)
    options.text = None
    try:
        if not options.synthetic_tokens and set(options.models) & set(workloads.TEXT_MODELS):
            options.text = workloads.find_text(options.data_dir)
        options.chosen = compressors(options.candidates)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    return options


def compressors(names: list[str] | None) -> dict[str, Compressor]:
    """By the names under which the figures have them."""
    names = list(names) if names is not None else None
    study = names is not None and "study" in names
    if study:
        names.remove("study")
    found = for_advice(names)
    if study:
        found |= {name: make() for name, make in STUDY.items()}
    return found


def main() -> None:
    options = parse()
    hvd.init()
    torch.set_num_threads(options.threads)
    options.link = links.Link()
    if options.rates != [AS_IT_IS] and not (links.emulated() and hvd.size() == 2):
        raise SystemExit("--rates needs two hosts: launch/emulate.sh --hosts 2 --rate unlimited -- python " + __file__)
    links.start_gloo()
    names = [ALONE, *RIVALS, *([DDP] if options.ddp else []), *options.chosen]
    names += [AUTO] if options.auto else []
    settings = {
        "batch": options.batch,
        "seconds": options.seconds,
        "auto_seconds": options.auto_seconds,
        "fastest": options.fastest,
        "ranks": hvd.size(),
        "threads": options.threads,
        "candidates": names,
        "text": options.text.name if options.text else None,
    }
    record = Record(options.out, settings)
    record.content["machine"] = {
        **machine.describe(),
        "cores": os.cpu_count(),
        "hosts": hvd.cross_size(),
        "ranks": hvd.size(),
        "threads a rank": options.threads,
    }
    for label in options.models:
        run_model(label, options.chosen, names, options, record)
        gc.collect()
    record.save()
    if hvd.rank() == 0:
        import end_to_end_report
        from rich.console import Console

        for table in end_to_end_report.tables(record.content):
            Console(width=150).print(table)


if __name__ == "__main__":
    main()
