"""The demo: what one training takes over a slow network, uncompressed and compressed. ``launch/demo.sh`` starts it.

    launch/emulate.sh --hosts 2 --rate unlimited -- python benchmarks/demo.py --out build/demo/demo.json
    mpirun -np 2 python benchmarks/demo.py --out build/demo/demo.json

Accuracies do not depend on the network, and step times do not depend on how well a network is trained. So every
network is trained once with each compression, over a link without a limit, and some steps of each are timed over every
link. A training's time over a link is the number of its steps times the median of the fastest quarter of the steps
there; for ``Auto``, the steps with which it came to its choice over that link are added as they were timed.

Between two hosts of launch/emulate.sh the steps are measured, over links of 1 Gbit/s and 100 Mbit/s. On hosts whose
links cannot be changed, those steps are predicted instead, by the model of ``hvd-compress advise``, from computation
measured here. The record, which ``benchmarks/demo_report.py`` reads, says which.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress.advisor import advice, machine, torch_model
from hvd_compress.advisor.cluster import Cluster
from hvd_compress.auto.candidates import by_accuracy
from hvd_compress.auto.rule import choose
from hvd_compress.auto.trials import MARGIN
from hvd_compress.compressor import Compressor

# isort: split
# Programs lie beside their modules: the trainings among the examples, what is measured in this folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import flags
import train_torch

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
import demo_report
import links
import workloads
from candidates import AUTO, FP16, NONE, Candidate
from rounds import Rounds

NETWORKS = {"VGG-like": "vgg", "ResNet": "resnet"}
"""Names of ``workloads``, and of ``examples/networks.py``."""
SIDCO = "SIDCo 0.01"
RATES = ("1gbit", "100mbit")
SHARE = 0.25
"""Of the steps that are timed, this share counts, the fastest: what else runs on a machine only ever takes time."""
LATENCY = 50e-6
"""Seconds of a message on a predicted link."""

FIXED: dict[str, Callable[[], Compressor | None]] = {
    NONE: lambda: None,
    FP16: lambda: None,
    SIDCO: lambda: hvd_compress.SIDCo(0.01),
}
"""What is compared, with ``Auto`` beside it."""


def settings(options: argparse.Namespace, network: str, compression: list[str], label: str) -> list[str]:
    """The flags of examples/train_torch.py for one training of the demo."""
    return [
        *("--model", NETWORKS[network], "--label", label, "--compression", *compression),
        *("--epochs", str(options.epochs), "--train-limit", str(options.images)),
        *("--batch-size", str(options.batch_size), "--seed", str(options.seed), "--threads", str(options.threads)),
        *("--data", options.data, *(["--data-dir", str(options.data_dir)] if options.data_dir else [])),
    ]


def train(options: argparse.Namespace, network: str, label: str, compressor: Compressor | None) -> dict[str, Any]:
    """Train once, over a link without a limit; the record's epochs, with the number of steps so far."""
    horovods = {NONE: "none", FP16: "fp16"}
    compression = [horovods[label]] if label in horovods else [compressor.name]  # type: ignore[union-attr]
    if compressor is not None:
        given = {key: value for key, value in compressor.to_config().items() if key != "name"}
        compression += [part for key, value in given.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    chosen, made = flags.parse("", settings(options, network, compression, label))
    training = train_torch.Training(chosen, made)
    training.introduce()
    training.run()
    record = training.record
    return {
        "label": label,
        "data": record.about["data"],
        "steps_per_epoch": training.epoch_steps,
        "sent_mb": median(record.steps["sent_bytes"]) / 1e6,
        "accuracies": [100 * epoch["test_accuracy"] for epoch in record.epochs],
    }


def measure(
    options: argparse.Namespace, network: str, rate: str, racing: list[Candidate], batches: list[workloads.Batch]
) -> list[dict[str, Any]]:
    """Time steps over the link as it is now; ``Auto`` makes its choice first, and its trial is timed too."""
    torch.manual_seed(0)
    weights = [parameter.data for parameter in racing[0].model.parameters()]
    auto = Candidate(AUTO, network, hvd_compress.Auto(), weights, SHARE)
    steps, seconds = auto.choose(batches)
    racing = [*racing, auto]
    Rounds(batches, lambda what: None).run(racing, options.seconds)
    cells = [{"rate": rate, "candidate": each.name, "ms": 1000 * median_step(each)} for each in racing]
    cells[-1] |= {"choice": auto.compressor.stats()["auto"]["choice"], "trial_steps": steps, "trial_seconds": seconds}
    return cells


def median_step(candidate: Candidate) -> float:
    """Seconds of the median step that counts."""
    return median(step["step"] for step in candidate.counted)


def predict(options: argparse.Namespace, network: str, rate: str) -> list[dict[str, Any]]:
    """Predict the steps over a link; what ``Auto`` would choose follows from its candidates' predicted steps."""
    cells = []
    if hvd.rank() == 0:
        shape = (options.batch_size, *workloads.WORKLOADS[network].sample)
        subject = torch_model.timed(workloads.WORKLOADS[network].make(), shape, None)
        tried = by_accuracy("safe", hvd.size())
        algorithms = {repr(one): one for one in (*tried, FIXED[SIDCO]())}
        cluster = Cluster.of_link(float(links.emulate.parse_rate(rate) or 0), LATENCY)
        found = advice.predict(subject, cluster, algorithms, (hvd.size(),), rounds=2)
        ms = {name: 1000 * by_workers[hvd.size()].step for name, by_workers in found.items()}
        names = [advice.UNCOMPRESSED if isinstance(one, hvd_compress.Dense) else repr(one) for one in tried]
        best = names[choose([ms[name] for name in names], MARGIN)]
        for name, known in ((NONE, advice.UNCOMPRESSED), (FP16, advice.FP16), (SIDCO, repr(FIXED[SIDCO]()))):
            cells.append({"rate": rate, "candidate": name, "ms": ms[known]})
        choice = repr(hvd_compress.Dense()) if best == advice.UNCOMPRESSED else best
        cells.append({"rate": rate, "candidate": AUTO, "ms": ms[best], "choice": choice})
        cells[-1] |= {"trial_steps": 0, "trial_seconds": 0.0}
    return hvd.broadcast_object(cells, 0)  # type: ignore[no-any-return]


def run(
    options: argparse.Namespace, network: str, link: links.Link | None, trainings: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """All of one network: steps over every link, then the trainings that its table needs and that are not there."""
    batches = workloads.batches(network, options.batch_size, hvd.rank(), None)
    torch.manual_seed(0)
    weights = [parameter.data for parameter in workloads.WORKLOADS[network].make().parameters()]
    racing = [Candidate(name, network, make(), weights, SHARE) for name, make in FIXED.items()]
    say(f"{network}: steps without a network")
    cells = measure(options, network, demo_report.UNLIMITED, racing, batches)
    for rate in RATES:
        say(f"{network}: steps over {rate}{'' if link else ', predicted'}")
        if link is None:
            cells += predict(options, network, rate)
            continue
        link.set(rate)
        cells += measure(options, network, rate, racing, batches)
        link.set(demo_report.UNLIMITED)
    for cell in cells:
        cell["training"] = cell["candidate"]
        if cell["candidate"] == AUTO:
            cell["training"] = training_of(cell["choice"])
    made = {name: make() for name, make in FIXED.items()} | {repr(one): one for one in by_accuracy("safe", hvd.size())}
    for name in dict.fromkeys([*FIXED, *(cell["training"] for cell in cells)]):
        if name not in trainings:
            trainings[name] = train(options, network, name, made[name])
    parameters = sum(weight.numel() for weight in weights)
    return {"network": network, "parameters": parameters, "cells": cells, "trainings": list(trainings.values())}


def trainings_of(options: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """The trainings by network and label that an earlier run has left, if they are to be kept."""
    if not options.keep_trainings:
        return {}
    content = json.loads(options.out.read_text(encoding="utf-8"))
    if content["trained_with"] != trained_with(options):
        raise SystemExit(f"{options.out} has trainings with {content['trained_with']}, not {trained_with(options)}")
    return {one["network"]: {each["label"]: each for each in one["trainings"]} for one in content["networks"]}


def trained_with(options: argparse.Namespace) -> dict[str, Any]:
    """What accuracies depend on."""
    return {key: getattr(options, key) for key in ("epochs", "images", "batch_size", "seed", "data")}


def training_of(choice: str) -> str:
    """The label of the training whose accuracies ``Auto`` has when it has chosen this compressor."""
    known = {repr(hvd_compress.Dense()): NONE, repr(FIXED[SIDCO]()): SIDCO}
    return known.get(choice, choice)


def say(what: str) -> None:
    """Tell the person at the terminal what is going on."""
    if hvd.rank() == 0:
        print(f"demo: {what}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="what is trained")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the images")
    parser.add_argument("--images", type=int, default=8_000, help="images of the training set that are used")
    parser.add_argument("--batch-size", type=int, default=32, help="images a rank and step")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the images")
    parser.add_argument("--seconds", type=float, default=1.5, help="for which a compression's steps are timed, about")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--data", choices=("fashion-mnist", "digits"), default="fashion-mnist", help="data set")
    parser.add_argument("--data-dir", type=Path, help="folder of the four idx files of Fashion-MNIST")
    parser.add_argument(
        "--keep-trainings", action="store_true", help="those in --out, of an earlier run, and time steps only"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the table and the picture go beside it")
    return parser.parse_args()


def main() -> None:
    options = parse()
    hvd.init()
    torch.set_num_threads(options.threads)
    link = links.Link() if links.emulated() and hvd.size() == 2 else None
    began = time.perf_counter()
    known = trainings_of(options)
    content: dict[str, Any] = {
        "schema": demo_report.SCHEMA,
        "predicted": link is None,
        "ranks": hvd.size(),
        "trained_with": trained_with(options),
        "machine": {**machine.describe(), "cores": os.cpu_count(), "threads a rank": options.threads},
        "networks": [run(options, network, link, known.get(network, {})) for network in options.networks],
    }
    content["seconds"] = round(time.perf_counter() - began)
    if hvd.rank() == 0:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
