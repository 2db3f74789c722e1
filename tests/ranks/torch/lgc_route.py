"""Scenarios: the two ways in which LGC's vectors come to the trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from hvd_compress.lgc import route
from tests.ranks.checks import expect
from tests.ranks.process_sets import process_set
from tests.ranks.scenario import scenario
from tests.ranks.torch.lgc import lgc
from tests.ranks.torch.training import assert_replicas_equal, batches, gather, network, optimizer, train

STEPS = 14


def folder() -> Path:
    """A new one, the same on all ranks."""
    return Path(gather(tempfile.mkdtemp() if hvd.rank() == 0 else "")[0])


def run(kind: str, records: list[Path]) -> tuple[list[hvd_compress.LGC], list[list[Any]]]:
    """Two optimizers in turns, each with a trainer on another rank, at a rate of 0: gradients do not depend on updates.

    Returns the compressors and every step's means.
    """
    compressions, pairs = [], []
    for number, record in enumerate(records):
        leader = number * (hvd.size() - 1)
        keywords = {"record": record, "leader": leader, "dense": [], "topk_only": [], "bucket_mb": 0.05}
        compression = lgc(train_steps=10**6, trainer="inline", route=kind, **keywords)
        model = network(number)
        compressions.append(compression)
        pairs.append((model, optimizer(model, compression, lr=0.0, named_parameters=f"{kind}{number}.")))
    means = []
    for inputs, labels in batches(STEPS):
        for model, opt in pairs:
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
            means.append([p.grad.numpy().copy() for p in model.parameters()])
    return compressions, means


@scenario(long=["mpirun 4"])
def both_routes_come_to_the_same() -> None:
    """Means up to the order of summation, the same on all ranks; and the very same samples."""
    found = {}
    for kind in ("allgather", "mpi"):
        records = [folder(), folder()]
        compressions, means = run(kind, records)
        digests = gather([mean.tobytes() for step in means for mean in step])
        assert all(other == digests[0] for other in digests)
        found[kind] = records, means
        for number, compression in enumerate(compressions):
            report = compression.stats()["lgc"]
            assert report["route"]["by"] == route.SAID[kind]
            if hvd.rank() == number * (hvd.size() - 1):
                assert report["trainer"]["route"] == route.SAID[kind]
            if kind == "mpi":
                assert report["route"].get("dropped", 0) == report["route"].get("incomplete", 0) == 0
    for left, right in zip(found["allgather"][1], found["mpi"][1], strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for number in range(2):
        gathered, sent = (found[kind][0][number] for kind in ("allgather", "mpi"))
        names = sorted(path.name for path in sent.iterdir())
        expected = sorted(path.name for path in gathered.iterdir())
        assert len({name.split("-")[1] for name in names}) == 3  # buckets
        assert len(expected) == 3 * (STEPS - 2)
        assert names == expected[: len(names)]
        assert len(names) >= 3 * (STEPS - 2 - route.LATE)
        for name in names:
            with np.load(gathered / name) as left, np.load(sent / name) as right:
                assert left["vectors"].shape[0] == hvd.size()
                assert left["vectors"].tobytes() == right["vectors"].tobytes(), name
                assert left["entries"] == right["entries"]


@scenario("mpirun 4")
def without_mpi4py_on_one_rank() -> None:
    original = route._mpi4py

    def missing() -> Any:
        raise ImportError("No module named 'mpi4py'")

    if hvd.rank() == 1:
        route._mpi4py = missing
    wanted = {
        "auto": ("ranks disagree on the compressor", "rank 1 has", "mpi4py cannot be imported"),
        "mpi": ("rank 1: route='mpi' cannot be: mpi4py cannot be imported",),
    }
    try:
        for kind, words in wanted.items():
            model = network()
            opt = optimizer(model, lgc(route=kind), named_parameters=f"missing.{kind}.")
            expect(ValueError, *words, run=lambda model=model, opt=opt: train(model, opt, steps=1))
    finally:
        route._mpi4py = original
    hvd.barrier()


@scenario("mpirun 4")
def in_a_process_set() -> None:
    """The other ranks take no part in the communicator."""
    members = [1, hvd.size() - 1]
    chosen = process_set(*members)
    if hvd.rank() in members:
        compression = lgc(train_steps=10**6, leader=1)
        model = network()
        opt = optimizer(model, compression, lr=0.05, process_set=chosen)
        train(model, opt, steps=12)
        report = compression.stats()["lgc"]["route"]
        assert report["by"] == route.SAID["mpi"]
        assert report["received" if hvd.rank() == members[1] else "sent"] > 3
    else:
        model = network()
    assert_replicas_equal(model, members)
    hvd.barrier()


@scenario("mpirun 4")
def long_vectors_under_way() -> None:
    """What MPI does not buffer; nobody takes the last ones in before the end of the program."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 10))
    compression = lgc(train_steps=10**6, ratio=1.0)
    train(model, optimizer(model, compression, lr=0.01, named_parameters="long."), steps=8)
    assert_replicas_equal(model)
    report = compression.stats()["lgc"]["route"]
    assert report["received" if hvd.rank() == 0 else "sent"] > 0
