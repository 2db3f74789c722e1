"""Long runs of every family of compressors: nothing grows."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress import Compressor
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, batches, network, optimizer

STEPS = int(os.environ.get("HVD_COMPRESS_SOAK_STEPS", "20000"))
"""Steps of each family; fewer to try it out."""
GROWTH = 8 << 20
"""Bytes by which a process may grow after the first tenth of its steps: what the allocators keep varies."""
LOOK = 500
"""Steps between two looks at the compressor's state and statistics, which must leave nothing behind either."""

FAMILIES: list[Callable[[], Compressor]] = [
    lambda: hvd_compress.Dense(),
    lambda: hvd_compress.Half(),
    lambda: hvd_compress.TopK(0.05),
    lambda: hvd_compress.DGC(0.05),
    lambda: hvd_compress.SIDCo(0.05),
    lambda: hvd_compress.QSGDMaxNorm(),
    lambda: hvd_compress.QSGDMaxNormMultiScale(),
    lambda: hvd_compress.RandKMaxNorm(0.1, error_feedback=True),
    lambda: hvd_compress.RandKMaxNormMultiScale(0.1),
    lambda: hvd_compress.TernGrad(),
    lambda: hvd_compress.FFT(0.1),
    lambda: hvd_compress.LGC(
        0.2, dense_steps=5, train_steps=20, encoder=(8, 8, 4), decoder=(8, 8), trainer="inline", floor=False
    ),
]


def used() -> dict[str, int]:
    """Return what this process holds: bytes in memory, threads, open descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    counts = {name: sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("task", "fd")}
    return {"memory": pages * os.sysconf("SC_PAGE_SIZE"), "threads": counts["task"], "descriptors": counts["fd"]}


@scenario(long=["mpirun 2"], limit=7200)
def nothing_grows() -> None:
    given = list(batches(16))
    for make in FAMILIES:
        model, compression = network(), make()
        opt = optimizer(model, compression, lr=0.01)
        before, times = {}, []
        for step in range(STEPS):
            started = perf_counter()
            inputs, labels = given[step % len(given)]
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
            times.append(perf_counter() - started)
            if step % LOOK == 0:
                compression.state_dict()
                compression.stats()
            if step == STEPS // 10:
                before = used()
        after = used()
        assert_replicas_equal(model)
        tenth = STEPS // 10
        first, last = (sorted(times[at : at + tenth])[tenth // 2] for at in (tenth, STEPS - tenth))
        if hvd.rank() == 0:
            print(f"{compression!r}: {before} -> {after}, median step {1e3 * first:.2f} ms -> {1e3 * last:.2f} ms")
        for what in ("threads", "descriptors"):
            assert after[what] <= before[what], (compression, what, before, after)
        assert after["memory"] < before["memory"] + GROWTH, (compression, before, after)
