"""Many workers in one process, under either scheduler, whose one-dimensional arrays are compressed too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress.compressor import Compressor
from hvd_compress.drivers import simulation as simulated
from hvd_compress.drivers.simulation import Hub, SimulatedTransport
from hvd_compress.exchange import AllReduce, Array, Broadcast, Collective
from hvd_compress.runtime.bucketing import Parameter, is_compressed, plan_buckets
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.graph_step import TracedBucket, TracedCall
from hvd_compress.runtime.graph_transport import CollectiveSpec
from hvd_compress.runtime.world import World

Gradients = Mapping[str, Sequence[np.ndarray]]


class Simulation(hvd_compress.Simulation):
    """One-dimensional arrays, which are left alone elsewhere, are handed over as matrices of one row."""

    def step(self, gradients: Gradients) -> dict[str, np.ndarray]:
        return in_rows(gradients, super().step)


def in_rows(gradients: Gradients, step: Callable[[Gradients], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Run a step on arrays of two dimensions or more; the means have the shapes of what was given."""
    shapes = {name: np.shape(arrays[0]) for name, arrays in gradients.items() if len(arrays)}
    rows = {
        name: [np.asarray(array)[np.newaxis] if np.ndim(array) == 1 else array for array in arrays]
        for name, arrays in gradients.items()
    }
    return {name: mean.reshape(shapes[name]) for name, mean in step(rows).items()}


def change_broadcasts(monkeypatch: pytest.MonkeyPatch, part: str, change: Callable[[np.ndarray], None]) -> None:
    """Have ``change`` called with the result of every broadcast, one array for all workers, their root included, whose
    name has this ``part``."""
    combine = simulated.combine

    def changed(name: str, collectives: list[Any]) -> list[np.ndarray]:
        results = combine(name, collectives)
        if part in name and isinstance(collectives[0], Broadcast):
            change(results[0])
        return results

    monkeypatch.setattr(simulated, "combine", changed)


class GraphSimulation:
    """As ``Simulation``, but every worker's exchanges are called as a graph calls them, bucket after bucket."""

    def __init__(self, compression: Compressor, workers: int, nodes: int | Sequence[int] = 1) -> None:
        self.topology = hvd_compress.Simulation(compression, workers, nodes).topology
        self._compression = compression
        self.compressors = [self._copy() for _ in range(workers)]
        self._hub = Hub(workers)
        self._transports = [SimulatedTransport(self._hub, rank, self.topology) for rank in range(workers)]
        self._worlds = [World(0, rank, self.topology) for rank in range(workers)]
        self._agreed = -1  # the number of the world that did
        self._engines: list[GraphEngine] = []
        self._calls: list[TracedCall] = []
        self._traced_buckets: list[list[TracedBucket]] = []
        self._specs: list[list[dict[str, list[CollectiveSpec]]]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}

    def step(self, gradients: Gradients) -> dict[str, np.ndarray]:
        return in_rows(gradients, self._step)

    def _step(self, gradients: Gradients) -> dict[str, np.ndarray]:
        least = self.compressors[0].min_numel
        chosen = [name for name, arrays in gradients.items() if is_compressed(np.shape(arrays[0]), least)]
        flat = {n: [np.ascontiguousarray(a, np.float32).reshape(-1) for a in gradients[n]] for n in gradients}
        if len(self._engines) < len(self.compressors):
            self._shapes = {name: np.shape(arrays[0]) for name, arrays in gradients.items()}
            self._trace(
                [Parameter(name, flat[name][0].size) for name in chosen],
                {name: arrays[0].size for name, arrays in flat.items() if name not in chosen},
            )
            uncompressed = sum(arrays[0].nbytes for name, arrays in flat.items() if name not in chosen)
            rest = [name for name in flat if name not in chosen] if self._engines[0].momentum is not None else []
            made = self._traced_buckets[len(self._calls) :]
            self._calls += [TracedCall(traced_buckets, uncompressed, len(rest)) for traced_buckets in made]
        self._begin()
        plain = [name for name in gradients if name not in chosen]
        finite = [all(np.isfinite(flat[name][rank]).all() for name in plain) for rank in range(len(self._engines))]
        means: list[dict[str, np.ndarray]] = [{} for _ in self._engines]
        for bucket in range(len(self._traced_buckets[0])):
            last = bucket + 1 == len(self._traced_buckets[0])
            self._run(bucket, flat, finite if last else [True] * len(finite), means)
        for other in means[1:]:
            assert {n: m.tobytes() for n, m in other.items()} == {n: m.tobytes() for n, m in means[0].items()}
        for name in plain:
            for rank, gradient in enumerate(flat[name]):
                self._hub.post(f"hvd_compress.plain.{name}", rank, AllReduce(gradient.copy()))
            sums = [self._hub.take(f"hvd_compress.plain.{name}", rank) for rank in range(len(self._engines))]
            means[0][name] = sums[0] / np.float32(len(sums))
            if self._engines[0].momentum is not None:
                given = [
                    engine.with_momentum(call, name, means[0][name], None, 1.0, compressed=False)
                    for engine, call in zip(self._engines, self._calls, strict=True)
                ]
                assert len({mean.tobytes() for mean in given}) == 1
                means[0][name] = given[0]
        return {name: means[0][name].reshape(shape).copy() for name, shape in self._shapes.items()}

    def change(self, survivors: Sequence[int], workers: int) -> None:
        """As ``Simulation.change``."""
        new = [self._copy() for _ in range(workers - len(survivors))]
        self.compressors = [*(self.compressors[rank] for rank in survivors), *new]
        self._hub = Hub(workers)
        self._engines = [self._engines[rank] for rank in survivors if self._engines]
        self._traced_buckets = [self._traced_buckets[rank] for rank in survivors if self._traced_buckets]
        self._specs = [self._specs[rank] for rank in survivors if self._specs]
        self._calls = [self._calls[rank] for rank in survivors if self._calls]
        number = self._worlds[0].number + 1
        self.topology = hvd_compress.Simulation(self._compression, workers).topology
        self._transports = [SimulatedTransport(self._hub, rank, self.topology) for rank in range(workers)]
        self._worlds = [World(number, rank, self.topology) for rank in range(workers)]
        for rank, engine in enumerate(self._engines):
            engine._look = partial(self._worlds.__getitem__, rank)
            engine._gather = partial(self._gather, rank)

    def _copy(self) -> Compressor:
        copy = dataclasses.replace(self._compression)
        copy.runtime.refuse_loss_scale("GraphSimulation")
        return copy

    def _trace(self, parameters: Sequence[Parameter], uncompressed: Mapping[str, int]) -> None:
        """Lay out the buckets on every worker that has none, as tracing does."""
        for rank in range(len(self._engines), len(self.compressors)):
            engine = GraphEngine(
                self.compressors[rank],
                "hvd_compress",
                partial(self._worlds.__getitem__, rank),
                partial(self._gather, rank),
                elastic=True,
            )
            self.compressors[rank].runtime.driver = self._Driver(engine)
            self._engines.append(engine)
            engine.restore_momenta(uncompressed)
            kinds = engine.prepare({parameter.name: parameter.size for parameter in parameters})
            layout = plan_buckets(
                range(len(parameters)),
                parameters,
                self.compressors[rank].bucket_mb,
                [kinds.get(p.name, "") for p in parameters],
            )
            self._traced_buckets.append(
                [engine.traced_bucket([parameters[index] for index in members]) for members in layout]
            )
            self._specs.append([engine.plans.of(traced.bucket) for traced in self._traced_buckets[rank]])

    def _begin(self) -> None:
        """Let a step begin on every worker: where they have changed, each waits for the others."""
        number, workers = self._worlds[0].number, len(self._worlds)
        if self._agreed != number:
            self._agreed = number
            self._records = [np.zeros(0, np.uint8)] * workers
            self._meeting = Barrier(workers)
            with ThreadPoolExecutor(workers) as threads:
                self._tickets = list(threads.map(GraphEngine.begin, self._engines, self._calls))
        else:
            self._tickets = list(map(GraphEngine.begin, self._engines, self._calls))

    def _gather(self, rank: int, record: np.ndarray) -> np.ndarray:
        self._records[rank] = record
        self._meeting.wait(10)
        gathered = np.concatenate(self._records)
        self._meeting.wait(10)
        return gathered

    def _run(
        self, bucket: int, flat: Mapping[str, list[np.ndarray]], finite: list[bool], means: list[dict[str, np.ndarray]]
    ) -> None:
        ranks = range(len(self._engines))
        traced_buckets = [traced_buckets[bucket] for traced_buckets in self._traced_buckets]
        plan = self._engines[0].plan(traced_buckets[0])
        assert all(engine.plan(traced) == plan for engine, traced in zip(self._engines, traced_buckets, strict=True))
        rounds = [specs[bucket][plan] for specs in self._specs]
        sent = [
            self._engines[rank].launch(
                self._calls[rank],
                traced_buckets[rank],
                plan,
                [flat[p.name][rank] for p in traced_buckets[rank].members],
                finite[rank],
            )
            for rank in ranks
        ]
        for number in range(len(rounds[0])):
            roots = [engine.root(traced) for engine, traced in zip(self._engines, traced_buckets, strict=True)]
            name = f"hvd_compress.{traced_buckets[0].bucket.name}.round{number}"
            handles = [
                transport.start(_collective(rounds[rank][number], sent[rank], roots[rank]), name)
                for rank, transport in enumerate(self._transports)
            ]
            results = [self._flat(transport.result(handles[rank])) for rank, transport in enumerate(self._transports)]
            if number + 1 < len(rounds[0]):
                sent = [self._engines[r].advance(traced_buckets[r], results[r], rounds[r][number + 1]) for r in ranks]
        landed = [self._engines[rank].land(traced_buckets[rank], results[rank], 1.0) for rank in ranks]
        assert len({flush for _, flush in landed}) == 1
        if landed[0][1]:
            name = f"hvd_compress.{traced_buckets[0].bucket.name}.flush"
            for rank in ranks:
                self._hub.post(name, rank, AllReduce(self._engines[rank].rest(traced_buckets[rank])))
            landed = [(self._engines[r].flushed(traced_buckets[r], self._hub.take(name, r), 1.0), True) for r in ranks]
        for rank in ranks:
            cut = traced_buckets[rank].parameters.cut(landed[rank][0])
            means[rank].update({p.name: part for p, part in zip(traced_buckets[rank].members, cut, strict=True)})

    @staticmethod
    def _flat(result: Array) -> Array:
        return result.reshape(-1)

    @dataclasses.dataclass
    class _Driver:
        """What a compressor asks of its driver."""

        engine: GraphEngine

        def state_dict(self) -> dict[str, Any]:
            return self.engine.state_dict()

        def restore(self, state: dict[str, Any] | None) -> None:
            self.engine.restore(state)


def _collective(spec: CollectiveSpec, values: Array, root: int) -> Collective:
    if spec.kind is Broadcast:
        return Broadcast(values, root, spec.scope)
    if spec.kind is AllReduce:
        return AllReduce(values.copy(), spec.op, spec.scope)
    return spec.kind(values, scope=spec.scope)
