"""What a worker sends, receives and computes against the number of workers, in the simulated transport.

    python benchmarks/scaling.py                     # writes docs/results/scaling.md and .png
    python benchmarks/scaling.py --most 64           # fewer workers: seconds

Bytes are those that pass through a worker's link, each way, if collectives are done as MPI does large ones: an
all-gather passes every other worker's payload, an all-reduce 2 (N - 1) / N of the array, a reduce-scatter and an
all-to-all half as much, a broadcast the array. Payloads that come to a worker are its work of decoding. Both are exact,
and the same on every machine. Seconds are those of one worker's exchange on this machine, compressing and decoding: a
median of four workers.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hvd_compress
from hvd_compress.cli.pictures import line_styles, name_lines, pyplot, save
from hvd_compress.drivers.simulation import combine
from hvd_compress.exchange import AllGather, AllReduce, AllToAll, Broadcast, Bucket, Collective, sent_array
from hvd_compress.kernels import get
from hvd_compress.phased import Preparation, phases
from hvd_compress.topology import ALL, NODE, PEERS, Topology

SIZE = 524_288
RATIO = 0.125
"""65,536 entries, as many as of a full bucket (25 MiB) at 0.01; a smaller bucket, so that 1,024 of them find room."""
PER_NODE = 8
"""Workers of a node, where nodes matter."""
WORKERS = (4, 16, 64, 256, 1024)
SAMPLED = 4
"""Workers that decode, and whose time is taken."""

COMPRESSORS: dict[str, Callable[[], hvd_compress.Compressor]] = {
    "all-gathered": lambda: hvd_compress.TopK(RATIO),
    "reduce-scattered": lambda: hvd_compress.TopK(RATIO, aggregate="reduce-scatter"),
    "shared indices": lambda: hvd_compress.SharedTopK(RATIO),
    "two levels, between nodes": lambda: hvd_compress.TwoLevel(
        hvd_compress.TopK(RATIO, aggregate="reduce-scatter"), ranks_per_node=PER_NODE
    ),
    "two levels, gathered, between nodes": lambda: hvd_compress.TwoLevel(
        hvd_compress.TopK(RATIO), ranks_per_node=PER_NODE
    ),
    "uncompressed": hvd_compress.Dense,
}


def passing(collective: Collective, members: int) -> float:
    """Return the bytes that pass through a worker's link, in each direction."""
    nbytes = sent_array(collective).nbytes
    if isinstance(collective, AllGather):
        return nbytes * (members - 1)
    if isinstance(collective, Broadcast):
        return nbytes * (members > 1)
    return nbytes * (members - 1) / members * (2 if isinstance(collective, AllReduce) else 1)


def decoded(collective: Collective, members: int) -> int:
    """Return the bytes of the payloads that come to a worker, its own included; what is reduced on its way needs no
    decoding."""
    nbytes = sent_array(collective).nbytes
    if isinstance(collective, AllGather):
        return nbytes * members
    return nbytes if isinstance(collective, (AllToAll, Broadcast)) else 0


class Load(NamedTuple):
    """What a step costs a worker: the megabytes through its link to all or to its peers, and to its node; the megabytes
    of payloads that it decodes; and the seconds of its exchange."""

    others: float
    node: float
    decoded: float
    seconds: float


class Workers:
    """As many workers as are asked for, each with its compressor and one bucket."""

    def __init__(self, make: Callable[[], hvd_compress.Compressor], count: int) -> None:
        self.count, kernels = count, get()
        self.buckets, self.exchanges = [], []
        self.base = np.random.default_rng(0).standard_normal(SIZE, np.float32) ** 3
        for rank in range(count):
            compressor = make()
            asked = phases(compressor)
            self.topology = asked.topology(count, lambda: Topology.single(count))
            asked.prepare(Preparation({"w": SIZE}, rank, count, True, None, self.topology))
            memory = compressor.new_memory(kernels, SIZE)
            bucket = Bucket("w", SIZE, memory, kernels, rank, count, seed=0, topology=self.topology)
            self.rounds = len(asked.plans(bucket)[asked.plan(bucket)])
            self.buckets.append(bucket)
            self.exchanges.append(compressor.exchange(bucket))

    def run(self) -> Load:
        """Run one step; return what it costs worker 0. All workers compress, and ``SAMPLED`` of them decode, of whose
        seconds it is the median."""
        answers: list[Any] = [None] * self.count
        volume: Counter[str] = Counter()
        payloads = 0
        seconds = np.zeros(SAMPLED)
        for _ in range(self.rounds):
            posted: list[Collective] = []
            for rank, exchange in enumerate(self.exchanges):
                if answers[rank] is None:
                    self.buckets[rank].memory.begin([np.roll(self.base, 4099 * rank)])
                began = time.process_time()
                posted.append(exchange.send(answers[rank]))
                seconds[min(rank, SAMPLED - 1)] += (time.process_time() - began) * (rank < SAMPLED)
            scope = posted[0].scope
            group = len(self.topology.members(scope, 0))
            volume[scope] += passing(posted[0], group)
            payloads += decoded(posted[0], group) * (scope != NODE)
            for members in {self.topology.members(scope, rank) for rank in range(self.count)}:
                for rank, result in zip(members, combine("w", [posted[m] for m in members]), strict=True):
                    answers[rank] = result.copy() if result.flags.writeable else result
        means = []
        for rank in range(min(SAMPLED, self.count)):
            began = time.process_time()
            self.buckets[rank].memory.commit()
            try:
                self.exchanges[rank].send(answers[rank])
            except StopIteration as stop:
                means.append(stop.value.tobytes())
            seconds[rank] += time.process_time() - began
        assert len(set(means)) == 1, "workers computed different means"
        others, node = volume[ALL] + volume[PEERS], volume[NODE]
        return Load(others / 1e6, node / 1e6, payloads / 1e6, float(np.median(seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=max(WORKERS), help="the largest number of workers")
    parser.add_argument("--out", type=Path, default=Path("docs/results/scaling"), help="of the table and the picture")
    args = parser.parse_args()
    counts = [workers for workers in WORKERS if workers <= args.most]
    found: dict[str, dict[int, Load]] = {}
    for name, make in COMPRESSORS.items():
        for workers in counts:
            began = time.perf_counter()
            found.setdefault(name, {})[workers] = Workers(make, workers).run()
            print(name, workers, found[name][workers], f"{time.perf_counter() - began:.0f} s", flush=True)
    args.out.with_suffix(".md").write_text(table(found, counts), encoding="utf-8")
    picture(found, args.out.with_suffix(".png"))


def table(found: dict[str, dict[int, Load]], counts: list[int]) -> str:
    head = f"| | {' | '.join(f'{workers:,}' for workers in counts)} | {counts[-1]:,} to 16 |"
    rule = f"|---|{'---:|' * (len(counts) + 1)}"

    def rows(values: Callable[[Load], float], form: str) -> list[str]:
        lines = []
        for name, by in found.items():
            cells = [format(values(by[workers]), form) if workers in by else "-" for workers in counts]
            first, last = by.get(16), by.get(counts[-1])
            grown = f"{values(last) / values(first):.2f}" if first and last and values(first) else "-"
            lines.append(f"| {name} | {' | '.join(cells)} | {grown} |")
        return lines

    parts = [
        "# Bytes and work against the number of workers",
        "",
        f"Written by `benchmarks/scaling.py`: one bucket of {SIZE:,} elements, {RATIO:.1%} of them sent,",
        f"nodes of {PER_NODE} workers where nodes matter. [Many workers](../many-workers.md) says what the rows are.",
        "",
        "Megabytes a step through a worker's link, each way (with two levels: to other nodes, and to its own):",
        "",
        head,
        rule,
        *rows(lambda one: one.others, ".3f"),
        *(
            line.replace("between nodes", "within a node")
            for line in rows(lambda one: one.node, ".3f")
            if "levels" in line
        ),
        "",
        f"From 16 workers to {counts[-1]:,}, what is summed on its way grows by (N - 1) / N and by the headers of its",
        "payloads, within 10 %. What is gathered grows with those who gather: the workers, or with two levels around",
        f"it the nodes. (16 workers are two nodes of {PER_NODE}, and half of what these exchange stays where it is.)",
        "",
        "Megabytes of payloads that a worker decodes, its own included:",
        "",
        head,
        rule,
        *rows(lambda one: one.decoded, ".3f"),
        "",
        "Milliseconds of a worker's exchange, compressing and decoding, in one process (1,024 fit no cache):",
        "",
        head,
        rule,
        *rows(lambda one: 1e3 * one.seconds, ".2f"),
        "",
        "![bytes through a link, and bytes that are decoded, as curves](scaling.png)",
        "",
    ]
    return "\n".join(parts)


def picture(found: dict[str, dict[int, Load]], path: Path) -> None:
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for name, style in line_styles(list(found)).items():
        by = found[name]
        short = name.removesuffix(", between nodes")
        axes[0].plot(list(by), [one.others for one in by.values()], label=short, **style)
        if any(one.decoded for one in by.values()):
            axes[1].plot(list(by), [one.decoded for one in by.values()], label=short, **style)
    for axis, label in zip(
        axes, ("MB a step through a worker's link", "MB of payloads that a worker decodes"), strict=True
    ):
        axis.set(xscale="log", yscale="log", xlabel="workers", ylabel=label)
        axis.grid(visible=True)
        name_lines(axis)
    save(figure, path)


if __name__ == "__main__":
    main()
