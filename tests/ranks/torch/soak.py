"""Long runs of every family of compressors, and through many changes of the workers: nothing grows."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from hvd_compress import Compressor
from tests.ranks.scenario import scenario
from tests.ranks.torch.training import assert_replicas_equal, batches, network, optimizer
from tests.ranks.torch.worlds import restart

STEPS = int(os.environ.get("HVD_COMPRESS_SOAK_STEPS", "20000"))
"""Steps of each family; fewer to try it out."""
GROWTH = 8 << 20
"""Bytes by which a process may grow after the first tenth of its steps: what the allocators keep varies."""
LOOK = 500
"""Steps between two looks at the compressor's state and statistics, which must leave nothing behind either."""
CHANGES = 40
"""How often workers meet anew in a run."""

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


def grown_through_changes(compression: Any) -> dict[str, int]:
    """Train in an elastic state, and meet anew every so many steps, after a restore every other time; return what this
    process holds more in the end than after a quarter of the changes."""
    given = list(batches(16))
    model = network()
    opt = optimizer(model, compression, lr=0.01)
    kept = {"compression": compression} if isinstance(compression, Compressor) else {}
    state = hvd.elastic.TorchState(model=model, optimizer=opt, **kept)
    before: dict[str, int] = {}
    for change in range(CHANGES + 1):
        for step in range(max(STEPS // CHANGES, 4)):
            inputs, labels = given[step % len(given)]
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
            if step == 2:
                state.save()
        if change == CHANGES // 4:
            before = used()
        if change < CHANGES:
            if change % 2:
                state.restore()
            restart()
            state.on_reset()
            state.sync()
    assert_replicas_equal(model)
    after = used()
    return {what: after[what] - before[what] for what in before}


@scenario(long=["gloo 2"], limit=7200)
def nothing_grows_through_changes() -> None:
    """Beyond what Horovod itself leaves behind when it is initialized again."""
    own = grown_through_changes(hvd.Compression.none)
    for compression in (hvd_compress.SIDCo(0.05), hvd_compress.QSGDMaxNorm(), FAMILIES[-1]()):
        grown = grown_through_changes(compression)
        if hvd.rank() == 0:
            print(f"{compression!r}: {grown}, uncompressed {own}")
        assert grown["threads"] <= own["threads"], (compression, own, grown)
        assert grown["descriptors"] <= own["descriptors"], (compression, own, grown)
        assert grown["memory"] < own["memory"] + GROWTH, (compression, own, grown)
