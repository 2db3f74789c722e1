"""What a step of training takes: a simulation of one worker's threads and its link, from measured costs.

The main thread computes the forward and the backward pass. Gradients become ready on the way; each is handed to
Horovod, or fills a bucket, which a second thread compresses when it is full. Horovod carries one collective after the
other beside the computation, and fuses what is waiting and alike. At the end of the backward pass the worker waits for
what is still under way, decodes, and updates the weights. All workers do the same at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hvd_compress.cli.cluster import ALLREDUCE, HALF, Cluster
from hvd_compress.cli.costs import Cost
from hvd_compress.compressor import Compressor
from hvd_compress.runtime.bucketing import Parameter, plan_buckets

TOKEN_BYTES = 4
TICK = 1e-10
"""Seconds that are nothing."""
FUSION_BYTES = 128 * 2**20
"""Horovod fuses up to so many (HOROVOD_FUSION_THRESHOLD)."""


@dataclass(frozen=True)
class Tensor:
    """A gradient; ``ready`` is the share of the backward pass that is over when it comes."""

    name: str
    size: int
    dimensions: int
    ready: float


@dataclass(frozen=True)
class Model:
    """Gradients in the order in which they come, and the seconds of a step without communication."""

    tensors: Sequence[Tensor]
    forward: float
    backward: float
    update: float

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.update

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


@dataclass
class Forecast:
    """Seconds of a step and of its phases, which add up to it; ``beside``: compression on a thread of its own.
    ``error``: why there is none."""

    compute: float = 0.0
    compress: float = 0.0
    wait: float = 0.0
    decompress: float = 0.0
    beside: float = 0.0
    error: str = ""

    @property
    def step(self) -> float:
        return self.compute + self.compress + self.wait + self.decompress


@dataclass(eq=False)
class Collective:
    """What is handed to Horovod."""

    kind: str
    nbytes: float
    done: bool = False


@dataclass(eq=False)
class _Transfer:
    """Several collectives as one: first the overhead, while others may still join, then the bytes."""

    first: Collective
    remaining: float
    members: list[Collective] = field(default_factory=list)


@dataclass(eq=False)
class _Task:
    """Work for the second thread, and what follows from it."""

    remaining: float
    then: Callable[[], object]


class Clock:
    """A worker's main thread, its second thread, and its link, at the same time, each slower beside the others."""

    def __init__(self, cluster: Cluster, workers: int) -> None:
        self.now = 0.0
        self._cluster, self._workers = cluster, workers
        self._queue: deque[Collective] = deque()
        self._transfer: _Transfer | None = None
        self._tasks: deque[_Task] = deque()

    def start(self, collective: Collective) -> Collective:
        """Hand over; it begins when those before it are done."""
        self._queue.append(collective)
        self._next()
        return collective

    def submit(self, seconds: float, then: Callable[[], object]) -> None:
        """Let the second thread work, after what it has to do already, and call ``then``."""
        self._tasks.append(_Task(max(seconds, TICK), then))

    def work(self, seconds: float) -> float:
        """Compute on the main thread for so many undisturbed seconds; returns how many it took."""
        began = self.now
        while seconds > TICK:
            seconds -= self._pass(seconds)
        return self.now - began

    def wait(self, over: Callable[[], bool]) -> float:
        """Until ``over`` is true; returns the seconds."""
        began = self.now
        while not over():
            self._pass(None)
        return self.now - began

    def _pass(self, main: float | None) -> float:
        """Up to the next event, at the latest when the main thread has worked ``main`` seconds; returns how many of
        them it has."""
        transfer, task = self._transfer, self._tasks[0] if self._tasks else None
        moving = transfer is not None and bool(transfer.members)
        threads = (main is not None) + (task is not None)
        crowd = max(1.0, (threads + moving) / self._cluster.cores)
        slow = max(crowd, self._cluster.slowdown if moving else 1.0)
        stretch = self._cluster.busy.get(transfer.first.kind, 1.0) if transfer and moving and threads else 1.0
        spans = [main * slow] if main is not None else []
        spans += [task.remaining * slow] if task is not None else []
        spans += [transfer.remaining * stretch] if transfer is not None else []
        span = min(spans)
        self.now += span
        if task is not None:
            task.remaining -= span / slow
        if transfer is not None:
            transfer.remaining -= span / stretch
            if transfer.remaining <= TICK:
                self._arrived(transfer)
        if task is not None and task.remaining <= TICK:
            self._tasks.popleft()
            task.then()
        return span / slow

    def _arrived(self, transfer: _Transfer) -> None:
        if not transfer.members:
            self._fuse(transfer)
            return
        for member in transfer.members:
            member.done = True
        self._transfer = None
        self._next()

    def _next(self) -> None:
        if self._transfer is None and self._queue:
            self._transfer = _Transfer(self._queue.popleft(), self._cluster.agreement(self._workers))
            if self._transfer.remaining <= TICK:
                self._fuse(self._transfer)

    def _fuse(self, transfer: _Transfer) -> None:
        kind, total = transfer.first.kind, transfer.first.nbytes
        transfer.members.append(transfer.first)
        for other in [other for other in self._queue if other.kind == kind]:
            if total + other.nbytes <= FUSION_BYTES:
                total += other.nbytes
                transfer.members.append(other)
                self._queue.remove(other)
        transfer.remaining = max(self._cluster.transfer(kind, total, self._workers), 2 * TICK)


def direct(
    model: Model, cluster: Cluster, workers: int, casts: Callable[[int], tuple[float, float]] | None
) -> Forecast:
    """Horovod uncompressed; or with ``casts``, its fp16: seconds to make float16 of so many elements, and back."""
    clock, found, started = Clock(cluster, workers), Forecast(), []
    for tensor in _computing(model, clock, found):
        found.compute += clock.work(cluster.per_tensor)
        if casts is not None:
            found.compress += clock.work(casts(tensor.size)[0])
        kind, width = (ALLREDUCE, 4) if casts is None else (HALF, 2)
        started.append(clock.start(Collective(kind, width * tensor.size)))
    for tensor, collective in zip(model.tensors, started, strict=True):
        found.wait += clock.wait(partial(_done, [collective]))
        if casts is not None:
            found.decompress += clock.work(casts(tensor.size)[1])
    found.compute += clock.work(model.update)
    return found


@dataclass(eq=False)
class _Exchange:
    """A bucket's exchange; ``sent``: collectives started so far; ``current``: the last of them, if it has started."""

    cost: Cost
    missing: int
    sent: int = 0
    current: Collective | None = None

    def is_through(self) -> bool:
        """What it has sent has arrived, and nothing is on its way to be sent."""
        return self.current is not None and self.current.done

    @property
    def finished(self) -> bool:
        return self.is_through() and self.sent == len(self.cost.rounds)


class _Exchanges:
    """The exchanges of a step, on their way."""

    def __init__(self, clock: Clock, found: Forecast, layout: Sequence[tuple[Cost, Sequence[int]]]) -> None:
        self._clock, self._found = clock, found
        self._all = [_Exchange(cost, len(members)) for cost, members in layout]
        self._place = {
            index: exchange for exchange, (_, members) in zip(self._all, layout, strict=True) for index in members
        }
        self._full: deque[_Exchange] = deque()
        self._launched = 0

    def arrive(self, number: int, last: bool) -> bool:
        """A gradient has come; start what is full, and go on with what is through. Returns whether it is in a bucket.

        The last bucket waits until every gradient has come by.
        """
        exchange = self._place.get(number)
        if exchange is not None:
            exchange.missing -= 1
            if exchange.missing == 0:
                self._full.append(exchange)
        while self._full and (last or self._launched + 1 < len(self._all)):
            self._go_on(self._full.popleft())
            self._launched += 1
        for other in self._all:
            if other.is_through() and not other.finished:
                self._go_on(other)
        return exchange is not None

    def finish(self) -> None:
        """Wait for all, round by round, and decode."""
        while under_way := [exchange for exchange in self._all if not exchange.finished]:
            for exchange in under_way:
                self._found.wait += self._clock.wait(exchange.is_through)
                if not exchange.finished:
                    self._go_on(exchange)
        self._found.decompress += self._clock.work(sum(exchange.cost.decode for exchange in self._all))

    def _go_on(self, exchange: _Exchange) -> None:
        step = exchange.cost.rounds[exchange.sent]
        exchange.sent += 1
        exchange.current = None
        self._found.beside += step.seconds

        def send() -> None:
            exchange.current = self._clock.start(Collective(step.kind, step.nbytes))

        self._clock.submit(step.seconds, send)


def compressed(
    model: Model, cluster: Cluster, workers: int, compressor: Compressor, costs: Mapping[int, Cost]
) -> Forecast:
    """With a compressor whose exchange costs ``costs``, by the size of the bucket, among so many workers."""
    layout = buckets(model.tensors, compressor)
    parts = [(costs[sum(model.tensors[index].size for index in members)], members) for members in layout]
    errors = [cost.error for cost, _ in parts if cost.error]
    if errors:
        return Forecast(error=errors[0])
    clock, found = Clock(cluster, workers), Forecast()
    exchanges, others = _Exchanges(clock, found, parts), []
    for number, tensor in enumerate(_computing(model, clock, found)):
        found.compute += clock.work(cluster.per_tensor)
        inside = exchanges.arrive(number, number + 1 == len(model.tensors))
        others.append(clock.start(Collective(ALLREDUCE, TOKEN_BYTES if inside else 4 * tensor.size)))
    exchanges.finish()
    found.wait += clock.wait(partial(_done, others))
    found.compute += clock.work(model.update)
    return found


def _done(collectives: Sequence[Collective]) -> bool:
    return all(collective.done for collective in collectives)


def _computing(model: Model, clock: Clock, found: Forecast) -> Iterator[Tensor]:
    """Compute from one gradient to the next, up to the end of the backward pass."""
    found.compute += clock.work(model.forward)
    over = 0.0
    for tensor in model.tensors:
        found.compute += clock.work((tensor.ready - over) * model.backward)
        over = max(over, tensor.ready)
        yield tensor
    found.compute += clock.work((1.0 - over) * model.backward)


def eligible(tensor: Tensor, compressor: Compressor) -> bool:
    """Whether it is compressed, rather than left to Horovod."""
    return tensor.dimensions >= 2 and tensor.size >= compressor.min_numel


def buckets(tensors: Sequence[Tensor], compressor: Compressor) -> list[list[int]]:
    """The buckets that the driver makes, as indices of tensors in the order of their gradients."""
    order = [index for index, tensor in enumerate(tensors) if eligible(tensor, compressor)]
    return plan_buckets(order, [Parameter(tensor.name, tensor.size) for tensor in tensors], compressor.bucket_mb)


def bucket_sizes(tensors: Sequence[Tensor], compressor: Compressor) -> list[int]:
    """Their sizes, in elements."""
    return [sum(tensors[index].size for index in members) for members in buckets(tensors, compressor)]


def tensors_of(profile: Mapping[str, Any]) -> list[Tensor]:
    """From what benchmarks/end_to_end.py writes of a model."""
    found = []
    for entry in profile["tensors"]:
        size = 1
        for length in entry["shape"]:
            size *= length
        found.append(Tensor(entry["name"], size, len(entry["shape"]), entry["ready"]))
    return found
