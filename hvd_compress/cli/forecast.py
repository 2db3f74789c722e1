"""What a step of training takes: a simulation of one worker's processor and its link, from measured costs.

The processor computes the forward and the backward pass. Gradients become ready on the way; each is handed to Horovod,
or fills a bucket, whose exchange starts when it is full. Horovod carries one collective after the other beside the
computation, and fuses what is waiting and alike. At the end of the backward pass the worker waits for what is still
under way, decodes, and updates the weights. All workers do the same at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hvd_compress.cli.cluster import ALLREDUCE, HALF, Cluster
from hvd_compress.cli.costs import Cost
from hvd_compress.compressor import Compressor
from hvd_compress.drivers.agreement import Parameter
from hvd_compress.drivers.engine import plan

TOKEN_BYTES = 4
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
    """Seconds of a step and of its phases, which add up to it. ``error``: why there is none."""

    compute: float = 0.0
    compress: float = 0.0
    wait: float = 0.0
    decompress: float = 0.0
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


class Clock:
    """The processor of a worker, and its link: both at once, each slower while the other is at work."""

    def __init__(self, cluster: Cluster, workers: int) -> None:
        self.now = 0.0
        self._cluster, self._workers = cluster, workers
        self._queue: deque[Collective] = deque()
        self._transfer: _Transfer | None = None

    def start(self, collective: Collective) -> Collective:
        """Hand over; it begins when those before it are done."""
        self._queue.append(collective)
        self._next()
        return collective

    def work(self, seconds: float) -> float:
        """Compute for so many seconds of an undisturbed processor; returns how many it took."""
        began = self.now
        while seconds > 0:
            if self._transfer is None:
                self.now += seconds
                break
            slow, busy = (self._cluster.slowdown, self._stretch()) if self._transfer.members else (1.0, 1.0)
            span = min(seconds * slow, self._transfer.remaining * busy)
            seconds -= span / slow
            if seconds < 1e-12:
                seconds = 0.0
            self._pass(span, busy)
        return self.now - began

    def wait(self, collective: Collective) -> float:
        """Until it is done; returns the seconds."""
        began = self.now
        while not collective.done:
            assert self._transfer is not None
            self._pass(self._transfer.remaining, 1.0)
        return self.now - began

    def _stretch(self) -> float:
        assert self._transfer is not None
        return self._cluster.busy.get(self._transfer.first.kind, 1.0)

    def _pass(self, span: float, stretch: float) -> None:
        transfer = self._transfer
        assert transfer is not None
        self.now += span
        transfer.remaining -= span / stretch
        if transfer.remaining > 1e-12:
            return
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
            if self._transfer.remaining <= 0:
                self._fuse(self._transfer)

    def _fuse(self, transfer: _Transfer) -> None:
        kind, total = transfer.first.kind, transfer.first.nbytes
        transfer.members.append(transfer.first)
        for other in [other for other in self._queue if other.kind == kind]:
            if total + other.nbytes <= FUSION_BYTES:
                total += other.nbytes
                transfer.members.append(other)
                self._queue.remove(other)
        transfer.remaining = max(self._cluster.transfer(kind, total, self._workers), 1e-11)


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
        found.wait += clock.wait(collective)
        if casts is not None:
            found.decompress += clock.work(casts(tensor.size)[1])
    found.compute += clock.work(model.update)
    return found


@dataclass(eq=False)
class _Exchange:
    """A bucket's exchange; ``sent``: collectives started so far."""

    cost: Cost
    missing: int
    sent: int = 0
    current: Collective | None = None


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
            while other.current and other.current.done and other.sent < len(other.cost.rounds):
                self._go_on(other)
        return exchange is not None

    def finish(self) -> None:
        """Wait for all, round by round, and decode."""
        under_way = list(self._all)
        while under_way:
            for exchange in list(under_way):
                assert exchange.current is not None
                self._found.wait += self._clock.wait(exchange.current)
                if exchange.sent < len(exchange.cost.rounds):
                    self._go_on(exchange)
                else:
                    under_way.remove(exchange)
        self._found.decompress += self._clock.work(sum(exchange.cost.decode for exchange in self._all))

    def _go_on(self, exchange: _Exchange) -> None:
        step = exchange.cost.rounds[exchange.sent]
        self._found.compress += self._clock.work(step.seconds)
        exchange.current = self._clock.start(Collective(step.kind, step.nbytes))
        exchange.sent += 1


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
    for collective in others:
        found.wait += clock.wait(collective)
    found.compute += clock.work(model.update)
    return found


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
    return plan(order, [Parameter(tensor.name, tensor.size) for tensor in tensors], compressor.bucket_mb)


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
