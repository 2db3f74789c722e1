"""N workers in one process: the same compressors, engine and collectives, with the network replaced by a dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.arrays import ArrayWorker
from hvd_compress.exchange import (
    AllGather,
    AllReduce,
    AllToAll,
    Array,
    Broadcast,
    Collective,
    ReduceScatter,
    sent_array,
)
from hvd_compress.kernels import Float32
from hvd_compress.phased import phases
from hvd_compress.topology import ALL, Topology
from hvd_compress.validation import require_int

MOST_WORKERS = 1024


class Simulation:
    """Run a compressor on ``workers`` simulated workers.

    Every worker gets its own copy of ``compression`` (in ``compressors``, in rank order), and every step asserts that
    all workers computed the same means, bit for bit.

    Args:
        compression: any compressor; it is copied, not used. Its ``stats()`` have the bytes and times of the
            first worker's copy, until a driver has it.
        workers: 1 to 1,024.
        nodes: how many nodes the workers are on, as evenly as can be, or how many workers each node has. It makes a
            difference to compressors that ask which workers share a node.

    >>> import numpy as np
    >>> from hvd_compress import TopK
    >>> simulation = Simulation(TopK(0.25, min_numel=1), workers=2)
    >>> simulation.step({"w": [np.array([[0, 8]]), np.array([[4.0, 0]])]})
    Traceback (most recent call last):
    TypeError: gradient 'w' has dtype int64; only floating point can be compressed
    >>> simulation.step({"w": [np.array([[0.0, 8], [1, 0]]), np.array([[4.0, 0], [0, 1]])]})
    {'w': array([[2., 4.],
           [0., 0.]], dtype=float32)}
    >>> simulation.step({"w": [np.zeros((2, 2)), np.zeros((2, 2))]})
    {'w': array([[0. , 0. ],
           [0.5, 0.5]], dtype=float32)}
    """

    def __init__(self, compression: Compressor, workers: int, nodes: int | Sequence[int] = 1) -> None:
        require_int("workers", workers, 1, MOST_WORKERS)
        self._compression = compression
        self._nodes = nodes
        self.topology = self._topology(workers)
        """Which workers share a node, as far as the compressor asks."""
        self.compressors = [self._copy() for _ in range(workers)]
        self._report_on_first()
        self._hub = Hub(workers)
        self._workers: list[ArrayWorker] = []

    def change(self, survivors: Sequence[int], workers: int) -> None:
        """Let workers go and others come, as in an elastic job. What those hold back that go is lost.

        Args:
            survivors: the ranks of the workers that stay; their new ranks are their places here.
            workers: how many there are from now on, 1 to 1,024. Those beyond the survivors are new.

        Workers are on as many nodes as before, if ``nodes`` was a number.

        Raises:
            ValueError: a survivor is named twice or is none of the workers, there is none, or there are more of them
                than workers.
        """
        require_int("workers", workers, 1, MOST_WORKERS)
        known = range(len(self.compressors))
        if not 0 < len(set(survivors)) == len(survivors) <= workers or any(rank not in known for rank in survivors):
            raise ValueError(
                f"survivors must be from 1 to {workers} different ranks below {len(known)}, got {list(survivors)}"
            )
        if self._workers:
            self._begin()  # those that came in an earlier change
        self.topology = self._topology(workers)
        new = [self._copy() for _ in range(workers - len(survivors))]
        self.compressors = [*(self.compressors[rank] for rank in survivors), *new]
        self._report_on_first()
        self._hub = Hub(workers)
        self._workers = [self._workers[rank] for rank in survivors if self._workers]
        for rank, worker in enumerate(self._workers):
            worker.enter_world(SimulatedTransport(self._hub, rank, self.topology))

    def step(self, gradients: Mapping[str, Sequence[NDArray[Any]]]) -> dict[str, Float32]:
        """Do one training step: take for every name one floating-point array per worker; return the means, float32.

        Names and shapes are fixed by the first step. Arrays below ``min_numel`` elements, or with one dimension, are
        averaged uncompressed.

        Raises:
            ValueError: the wrong number of arrays, or names or shapes that differ.
            AssertionError: workers disagree: the compressor breaks its contract.
        """
        count = len(self.compressors)
        for name, arrays in gradients.items():
            if len(arrays) != count:
                raise ValueError(f"gradient {name!r} has {len(arrays)} arrays for {count} workers")
        self._begin()
        for rank, worker in enumerate(self._workers):
            worker.begin({name: arrays[rank] for name, arrays in gradients.items()})
        self._hub.run([worker.agreeing() for worker in self._workers])
        self._hub.run([worker.stepping() for worker in self._workers])
        means = [worker.means() for worker in self._workers]
        for rank, other in enumerate(means[1:], start=1):
            for name, mean in means[0].items():
                if mean.tobytes() != other[name].tobytes():
                    raise AssertionError(f"workers 0 and {rank} computed different means of {name!r}")
        return means[0]

    def _copy(self) -> Compressor:
        copy = dataclasses.replace(self._compression)
        copy.runtime.loss_scale = self._compression.runtime.loss_scale
        copy.runtime.refuse_loss_scale("Simulation")
        return copy

    def _report_on_first(self) -> None:
        """Let the compressor that was given report what the first worker's copy sends, until it works elsewhere."""
        self._compression.runtime.simulated = self.compressors[0].runtime.statistics

    def _begin(self) -> None:
        """Have a worker for each compressor."""
        for rank in range(len(self._workers), len(self.compressors)):
            transport = SimulatedTransport(self._hub, rank, self.topology)
            self._workers.append(ArrayWorker(self.compressors[rank], transport))

    def _topology(self, workers: int) -> Topology:
        """Return which of so many workers share a node, as far as the compressor asks."""
        found = partial(Topology.of_sizes, _node_sizes(workers, self._nodes))
        return phases(self._compression).topology(workers, found)


def _node_sizes(workers: int, nodes: int | Sequence[int]) -> list[int]:
    if isinstance(nodes, Sequence):
        for size in nodes:
            require_int("nodes", size, 1)
        if sum(nodes) != workers:
            raise ValueError(f"nodes must have {workers} workers in all, got {list(nodes)}")
        return list(nodes)
    require_int("nodes", nodes, 1, workers)
    each, rest = divmod(workers, nodes)
    return [each + (number < rest) for number in range(nodes)]


class Hub:
    """Where the simulated collectives meet: what every worker posted, and the results not yet taken, by name."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._posted: dict[str, dict[int, Collective]] = {}
        self._results: dict[str, dict[int, Array]] = {}

    def post(self, name: str, rank: int, collective: Collective, members: Sequence[int] | None = None) -> None:
        """Start a collective for one worker, among these ``members``; None: all. Other groups take other names."""
        group = range(self.workers) if members is None else members
        ranks = self._posted.setdefault(name, {})
        if rank in ranks:
            raise RuntimeError(f"worker {rank} started {name} twice")
        ranks[rank] = collective
        if len(ranks) == len(group):
            results = combine(name, [ranks[member] for member in group])
            self._results[name] = dict(zip(group, results, strict=True))

    def done(self, name: str) -> bool:
        """Return whether all workers have started it."""
        return name in self._results

    def take(self, name: str, rank: int) -> Array:
        """Return one worker's result, which is its own to write to, unless it is of an all-gather."""
        results = self._results[name]
        result = results.pop(rank)
        if not results:
            del self._results[name], self._posted[name]
        elif result.flags.writeable and any(result is other for other in results.values()):
            return result.copy()
        return result

    def run(self, workers: list[Iterator[str]]) -> None:
        """Run all workers to their end, each whenever what it waits for is done."""
        waiting: dict[int, str | None] = dict.fromkeys(range(len(workers)))
        while waiting:
            progress = False
            for rank, name in list(waiting.items()):
                if name is None or self.done(name):
                    progress = True
                    try:
                        waiting[rank] = next(workers[rank])
                    except StopIteration:
                        del waiting[rank]
            if not progress:
                raise RuntimeError(f"deadlock: workers wait for {sorted({str(name) for name in waiting.values()})}")


class SimulatedTransport:
    """A worker's view of the hub; handles are the names under which collectives are posted."""

    def __init__(self, hub: Hub, rank: int, topology: Topology | None = None) -> None:
        self.rank = rank
        self.workers = hub.workers
        self.topology = topology or Topology.single(hub.workers)
        self.simulated = True
        self.mpi: tuple[int, ...] | None = None
        self._hub = hub

    def start(self, collective: Collective, name: str) -> str:
        if collective.scope == ALL:
            self._hub.post(name, self.rank, collective)
            return name
        members = self.topology.members(collective.scope, self.rank)
        handle = f"{name} of {collective.scope} {members[0]}"
        self._hub.post(handle, self.rank, collective, members)
        return handle

    def done(self, handle: str) -> bool:
        return self._hub.done(handle)

    def wait(self, handle: str) -> None:
        if not self.done(handle):
            raise RuntimeError(f"worker {self.rank} would wait for {handle} forever")

    def result(self, handle: str) -> Array:
        return self._hub.take(handle, self.rank)


def _in_words(collective: Collective) -> str:
    """Return what must be the same on all workers: the type, the operation or root, and the array's shape and dtype."""
    array = sent_array(collective)
    more = {"op": getattr(collective, "op", None), "root": getattr(collective, "root", None)}
    said = "".join(f", {key}={value!r}" for key, value in more.items() if value is not None)
    return f"{type(collective).__name__}({array.dtype} of shape {array.shape}{said})"


def combine(name: str, collectives: list[Collective]) -> list[Array]:
    """Return the workers' results of one collective, from what they posted in rank order; they may be one array.

    Raises:
        ValueError: they differ in type, dtype, shape, operation or root.
    """
    first = collectives[0]
    arrays = [sent_array(collective) for collective in collectives]
    for rank, (collective, array) in enumerate(zip(collectives, arrays, strict=True)):
        same = type(collective) is type(first) and array.dtype == arrays[0].dtype and array.shape == arrays[0].shape
        if isinstance(first, AllReduce) and isinstance(collective, AllReduce):
            same = same and collective.op == first.op
        if isinstance(first, Broadcast) and isinstance(collective, Broadcast):
            same = same and collective.root == first.root
        if not same:
            raise ValueError(
                f"workers 0 and {rank} started different collectives as {name}: {_in_words(first)}, "
                f"{_in_words(collective)}; what a worker sends must not depend on its data but for the content"
            )
    count = len(arrays)
    if isinstance(first, AllToAll):
        return [np.stack([array[place] for array in arrays]) for place in range(count)]
    if isinstance(first, AllGather):
        gathered = np.stack(arrays)
        gathered.setflags(write=False)  # payloads are only read, so that one array serves all
        return [gathered] * count
    if isinstance(first, Broadcast):
        return [arrays[first.root].copy()] * count
    reduce = {"sum": np.add, "max": np.maximum, "min": np.minimum}[getattr(first, "op", "sum")]
    total = arrays[0].copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for array in arrays[1:]:
            reduce(total, array, out=total)  # type: ignore[operator]
    if isinstance(first, ReduceScatter):
        return [total[place].copy() if place < len(total) else total[0, :0] for place in range(count)]
    return [total] * count
