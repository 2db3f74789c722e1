"""What a step of training takes: a simulation of one worker's threads and its link, from measured costs.

The main thread computes the forward and the backward pass. Gradients become ready on the way; each is handed to
Horovod, or fills a bucket, which a second thread compresses when it is full. Horovod carries one collective after the
other beside the computation, and fuses what is waiting and alike. At the end of the backward pass the worker waits for
what is still under way, decodes, and updates the weights. All workers do the same at the same time.

Which parameters are compressed, how they are cut into buckets and when a bucket starts is decided by the runtime's own
functions, which the engine of a real training calls too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hvd_compress.advisor.cluster import ALLREDUCE, HALF, Cluster
from hvd_compress.advisor.costs import ExchangeCost
from hvd_compress.advisor.model import Gradient, Model
from hvd_compress.advisor.timeline import QueuedCollective, Timeline
from hvd_compress.compressor import Compressor
from hvd_compress.runtime.bucketing import Parameter, is_compressed, plan_buckets
from hvd_compress.runtime.schedule import startable

TOKEN_BYTES = 4


@dataclass
class Forecast:
    """Seconds of a step and of its phases, which add up to it."""

    compute: float = 0.0
    compress: float = 0.0
    wait: float = 0.0
    decompress: float = 0.0
    beside: float = 0.0
    """Seconds of compression on a thread of its own, which are no part of the step."""
    spread: float = 0.0
    """Half of the times that the costs of compression were found from lie within this fraction of their median."""
    selects: bool = False
    """Whether only some of the elements are sent in a step, and the others later."""
    error: str = ""
    """Why there is no forecast, if there is none."""

    @property
    def step(self) -> float:
        return self.compute + self.compress + self.wait + self.decompress


def uncompressed(
    model: Model, cluster: Cluster, workers: int, casts: Callable[[int], tuple[float, float]] | None
) -> Forecast:
    """Return the forecast of Horovod uncompressed, or with ``casts`` of its fp16: seconds to make float16 of so many
    elements, and back."""
    timeline, found, started = Timeline(cluster, workers), Forecast(), []
    for gradient in _computing(model, timeline, found):
        found.compute += timeline.work(cluster.per_tensor)
        if casts is not None:
            found.compress += timeline.work(casts(gradient.size)[0])
        kind, width = (ALLREDUCE, 4) if casts is None else (HALF, 2)
        started.append(timeline.start(QueuedCollective(kind, width * gradient.size)))
    for gradient, collective in zip(model.gradients, started, strict=True):
        found.wait += timeline.wait(partial(_done, [collective]))
        if casts is not None:
            found.decompress += timeline.work(casts(gradient.size)[1])
    found.compute += timeline.work(model.update)
    return found


def compressed(
    model: Model, cluster: Cluster, workers: int, compressor: Compressor, costs: Mapping[int, ExchangeCost]
) -> Forecast:
    """Return the forecast with a compressor, whose exchange of a bucket of so many elements costs ``costs``."""
    layout = buckets(model.gradients, compressor)
    parts = [(costs[sum(model.gradients[index].size for index in members)], members) for members in layout]
    errors = [cost.error for cost, _ in parts if cost.error]
    if errors:
        return Forecast(error=errors[0])
    timeline, found = Timeline(cluster, workers), Forecast()
    exchanges, others = _Exchanges(timeline, found, parts), []
    for number, gradient in enumerate(_computing(model, timeline, found)):
        found.compute += timeline.work(cluster.per_tensor + cluster.per_gradient)
        inside = exchanges.arrive(number, number + 1 == len(model.gradients))
        others.append(timeline.start(QueuedCollective(ALLREDUCE, TOKEN_BYTES if inside else 4 * gradient.size)))
    exchanges.finish()
    found.wait += timeline.wait(partial(_done, others))
    found.compute += timeline.work(model.update)
    return found


def buckets(gradients: Sequence[Gradient], compressor: Compressor) -> list[list[int]]:
    """Return the buckets that an engine makes after the first step, as indices of gradients in the order in which they
    come."""
    order = [i for i, gradient in enumerate(gradients) if is_compressed(gradient.shape, compressor.min_numel)]
    parameters = [Parameter(gradient.name, gradient.size) for gradient in gradients]
    return plan_buckets(order, parameters, compressor.bucket_mb)


def bucket_sizes(gradients: Sequence[Gradient], compressor: Compressor) -> list[int]:
    """Return the buckets' sizes, in elements."""
    return [sum(gradients[index].size for index in members) for members in buckets(gradients, compressor)]


@dataclass(eq=False)
class _SimulatedExchange:
    """A bucket's exchange.

    ``missing`` is how many gradients have not come, ``sent`` how many collectives have been begun, and ``current`` the
    last of them, once it has been handed to Horovod.
    """

    cost: ExchangeCost
    missing: int
    sent: int = 0
    current: QueuedCollective | None = None

    def is_through(self) -> bool:
        """Return whether what it has sent has arrived, and nothing is on its way to be sent."""
        return self.current is not None and self.current.done

    @property
    def finished(self) -> bool:
        return self.is_through() and self.sent == len(self.cost.rounds)


class _Exchanges:
    """The exchanges of a step, as the runtime's engine starts and continues them."""

    def __init__(
        self, timeline: Timeline, found: Forecast, layout: Sequence[tuple[ExchangeCost, Sequence[int]]]
    ) -> None:
        self._timeline, self._found = timeline, found
        self._all = [_SimulatedExchange(cost, len(members)) for cost, members in layout]
        self._place = {
            index: exchange for exchange, (_, members) in zip(self._all, layout, strict=True) for index in members
        }
        self._complete: deque[_SimulatedExchange] = deque()
        self._started: list[_SimulatedExchange] = []

    def arrive(self, number: int, last: bool) -> bool:
        """Take a gradient: start what may start, and continue what is through. Return whether it is in a bucket."""
        exchange = self._place.get(number)
        if exchange is not None:
            exchange.missing -= 1
            if exchange.missing == 0:
                self._complete.append(exchange)
        for _ in range(startable(len(self._complete), len(self._started), len(self._all), last)):
            self._started.append(self._complete.popleft())
            self._continue(self._started[-1])
        for other in self._started:
            if other.is_through() and not other.finished:
                self._continue(other)
        return exchange is not None

    def finish(self) -> None:
        """Wait for all, round by round, and decode."""
        while under_way := [exchange for exchange in self._started if not exchange.finished]:
            for exchange in under_way:
                self._found.wait += self._timeline.wait(exchange.is_through)
                if not exchange.finished:
                    self._continue(exchange)
        self._found.decompress += self._timeline.work(sum(exchange.cost.decode for exchange in self._all))

    def _continue(self, exchange: _SimulatedExchange) -> None:
        step = exchange.cost.rounds[exchange.sent]
        exchange.sent += 1
        exchange.current = None
        self._found.beside += step.seconds

        def send() -> None:
            exchange.current = self._timeline.start(QueuedCollective(step.kind, step.nbytes, scope=step.scope))

        self._timeline.submit(step.seconds, send)


def _done(collectives: Sequence[QueuedCollective]) -> bool:
    return all(collective.done for collective in collectives)


def _computing(model: Model, timeline: Timeline, found: Forecast) -> Iterator[Gradient]:
    """Compute from one gradient to the next, up to the end of the backward pass."""
    found.compute += timeline.work(model.forward)
    over = 0.0
    for gradient in model.gradients:
        found.compute += timeline.work((gradient.ready - over) * model.backward)
        over = max(over, gradient.ready)
        yield gradient
    found.compute += timeline.work((1.0 - over) * model.backward)
