"""Compression between nodes only: within a node, where links are fast, gradients are summed as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import numpy as np

from hvd_compress import registry, schedules
from hvd_compress.codecs import header
from hvd_compress.compressor import Collectives, Compressor, compressor_dataclass
from hvd_compress.exchange import (
    AllGather,
    AllReduce,
    AllToAll,
    Array,
    Broadcast,
    Bucket,
    Collective,
    Exchange,
    NonFiniteGradient,
    ReduceScatter,
)
from hvd_compress.kernels import Float32, Kernels
from hvd_compress.memory import Memory
from hvd_compress.momentum import MeanMomentum
from hvd_compress.phased import PhasedCompressor, Preparation, phases
from hvd_compress.shares import ShareMemory
from hvd_compress.sparsifier import Sparsifier
from hvd_compress.statistics import Report
from hvd_compress.topology import NODE, PEERS, Topology
from hvd_compress.validation import require_int

COMMON = ("min_numel", "bucket_mb", "seed", "process_set", "nonfinite")
"""Parameters of every compressor; those of the one and of the other are the same."""
TOLD = 3
"""Numbers behind a share by which the workers of a node tell each other what they know or ask: that a gradient outside
the buckets is not finite, a flush, that the step be discarded."""


@compressor_dataclass
class TwoLevel(PhasedCompressor):
    """Sum gradients within a node as they are, and compress what goes between nodes.

    1. Reduce-scatter within the node: each of its L workers gets the node's sum of a share, 1/L of every parameter.
    2. The wrapped compressor's exchange of this share, with the workers that have it on the other nodes. A worker
       compresses d/L elements, and remembers only of these what was not sent.
    3. All-gather of the shares' means within the node.

    With one node, or with one worker on every node, it is the wrapped exchange as it is. Nodes may differ in size:
    there are as many shares as the smallest node has workers, and what the others have more takes part in 1 and 3 only.
    ``hvd.allreduce`` with this compressor, outside an optimizer, is the wrapped exchange too.

    Args:
        compressor: any compressor whose steps are all alike, or its configuration, or its name.
        ranks_per_node: so many ranks, which follow each other, form a node; None: those that the launcher started on
            one host. For hosts that are divided (two sockets, two switches), and for trying it out on one machine.

    ``min_numel``, ``bucket_mb``, ``seed`` and ``nonfinite`` may be given to either of the two.

    Under Horovod it needs ``HOROVOD_DYNAMIC_PROCESS_SETS=1`` in the job's environment, and the global process set.

    Tuning: it pays where a node has several workers and the network between nodes is what you wait for. A share is L
    times smaller than the gradient but its sum is of L workers, so keep the ratio that you would take without it.

    >>> TwoLevel({"name": "topk", "ratio": 0.02}, ranks_per_node=4)
    TwoLevel(compressor=TopK(ratio=0.02), ranks_per_node=4)
    """

    name: ClassVar[str] = "two-level"
    asks_for_nodes = True

    compressor: Compressor | Mapping[str, Any] | str = "sidco"
    _: KW_ONLY
    ranks_per_node: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.compressor if isinstance(self.compressor, Compressor) else registry.from_config(self.compressor)
        if isinstance(inner, TwoLevel):
            raise ValueError(f"TwoLevel takes a compressor whose steps are all alike, got {inner!r}")
        if inner.memory_unit != "gradient":
            raise ValueError(f"TwoLevel remembers gradients: leave out memory_unit, got {inner!r}")
        if isinstance(inner, PhasedCompressor) and not inner.steady:
            hint = ': say aggregate="all-gather" or "reduce-scatter"' if isinstance(inner, Sparsifier) else ""
            raise ValueError(f"TwoLevel takes a compressor whose steps are all alike, got {inner!r}{hint}")
        if self.ranks_per_node is not None:
            require_int("ranks_per_node", self.ranks_per_node, 1)
        for name in COMMON:
            mine, its, default = getattr(self, name), getattr(inner, name), type(self).parameters()[name]
            if default != mine != its != default:
                raise ValueError(f"{name} is {mine!r} for TwoLevel and {its!r} for {inner!r}; give it to one of them")
            object.__setattr__(self, name, its if mine == default else mine)
        common = {name: getattr(self, name) for name in COMMON}
        object.__setattr__(self, "compressor", dataclasses.replace(inner, **common))
        object.__setattr__(self, "_arranged", [])

    @property
    def inner(self) -> Compressor:
        """The wrapped compressor."""
        assert isinstance(self.compressor, Compressor)
        return self.compressor

    @property
    def steady(self) -> bool:
        return True

    @property
    def error_feedback(self) -> bool:  # type: ignore[override]
        return self.inner.error_feedback

    @property
    def runs_on_devices(self) -> bool:  # type: ignore[override]
        return self.inner.runs_on_devices

    @property
    def rounds_by_device(self) -> bool:  # type: ignore[override]
        return self.inner.rounds_by_device

    @property
    def selects(self) -> bool:  # type: ignore[override]
        return self.inner.selects

    @property
    def signals(self) -> bool:  # type: ignore[override]
        return self.inner.signals

    @property
    def schedule(self) -> Collectives:  # type: ignore[override]
        """The collectives of a step on one node."""
        return self.inner.schedule

    @property
    def can_flush(self) -> bool:
        return self.inner.can_flush

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def tells(self, plan: str, collectives: Collectives) -> bool:
        return self._peers_tell  # the node's all-gather has no flags

    @property
    def _peers_tell(self) -> bool:
        """Whether the peers tell each other of what is not finite, and of requests."""
        return self.inner.signals or AllGather in self.inner.schedule

    def mean_momentum(self) -> MeanMomentum | None:
        return self.inner.mean_momentum()

    def gradient_limit(self, workers: int) -> float | None:
        return self.inner.gradient_limit(workers)

    def check_bucket_state(self, state: Mapping[str, Any], size: int) -> None:
        self.inner.check_bucket_state(state, size)

    def topology(self, workers: int, found: Callable[[], Topology]) -> Topology:
        return found() if self.ranks_per_node is None else Topology.of_blocks(workers, self.ranks_per_node)

    def prepare(self, work: Preparation) -> dict[str, str]:
        arranged: list[tuple[Topology, int]] = self.__dict__["_arranged"]
        arranged[:] = [(work.topology, work.rank)] if work.topology is not None else []
        return {}

    def new_memory(self, kernels: Kernels, size: int) -> Memory:
        for topology, rank in self.__dict__["_arranged"]:
            if not topology.plain:
                place = topology.place(rank)
                share = place if place < topology.shares else None
                per_share = topology.workers / len(topology.nodes)
                return ShareMemory(
                    kernels, size, self.inner.new_memory, topology.shares, share, self._flush_strays, per_share
                )
        return self.inner.new_memory(kernels, size)

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        if bucket.topology.plain:
            return phases(self.inner).plans(bucket)
        ((_, between),) = phases(self.inner).plans(_share_of(bucket)).items()
        return {"": (ReduceScatter, *between, AllGather)}

    def plan(self, bucket: Bucket) -> str:
        plan = phases(self.inner).plan(bucket if bucket.topology.plain else _share_of(bucket))
        return plan if bucket.topology.plain else ""

    def exchange(self, bucket: Bucket) -> Exchange:
        return self.inner.exchange(bucket) if bucket.topology.plain else self._by_shares(bucket)

    def stats(self) -> Report:
        """Return what ``Compressor.stats`` does, and what the wrapped compressor's says beside."""
        return self.inner.stats().with_more(super().stats())

    def _config(self, written: Callable[[Any], Any]) -> dict[str, Any]:
        config = super()._config(written)
        return {key: self._inner_config(written) if key == "compressor" else value for key, value in config.items()}

    def _inner_config(self, written: Callable[[Any], Any]) -> dict[str, Any]:
        return {key: value for key, value in self.inner._config(written).items() if key not in COMMON}

    def _changed(self) -> dict[str, Any]:
        default = {"name": type(self).parameters()["compressor"]}
        changed = super()._changed()
        return {
            k: v for k, v in changed.items() if k != "compressor" or self._inner_config(schedules.comparable) != default
        }

    def _flush_strays(self) -> None:
        self.runtime.flush_requested = True

    def _by_shares(self, bucket: Bucket) -> Exchange:
        kernels, memory, share = bucket.kernels, _memory_of(bucket), _share_of(bucket)
        length, workers = memory.length, bucket.workers
        rows = bucket.device_scratch("shares", memory.count * (length + TOLD), np.float32).reshape(memory.count, -1)
        memory.scatter(rows[:, :length])
        asked = (bucket.overflow, bucket.requests & header.FLUSH, bucket.requests & header.DISCARD)
        kernels.put(rows[:, length:], np.array([bool(flag) for flag in asked], np.float32))
        summed: Float32 = yield ReduceScatter(rows, scope=NODE)
        if memory.share is None:
            summed = kernels.empty(length + TOLD)
            summed[:] = 0
        _take_over(bucket, share, kernels.on_host(summed[length:]) > 0, self._peers_tell)
        memory.inner.begin([summed[cut.offset : cut.offset + cut.length] for cut in memory.cuts])
        payload = bucket.payload(header.NBYTES + 4 * length, codec=header.DENSE)
        sent: Float32 = payload[header.NBYTES :].view(np.float32)
        part = bucket.device_scratch("part", length, np.float32) if kernels.pooled else sent
        yield from self._between(bucket, share, part)
        part *= np.float32(share.workers / workers)
        if part is not sent:
            sent[:] = kernels.on_host(part)
        bucket.target, bucket.sent = share.target, share.sent
        gathered: Array = yield AllGather(payload, scope=NODE)
        header.check(gathered, codec=header.DENSE, elements=bucket.size, capacity=0)
        parts = gathered[: memory.count, header.NBYTES :].view(np.float32)
        return memory.gather(kernels.from_host(parts), bucket.decoded)

    def _between(self, bucket: Bucket, share: Bucket, part: Float32) -> Generator[Collective, Array, None]:
        """Run the wrapped exchange of the share among the peers, and write its mean to ``part``.

        What the peers tell each other is noted in the bucket, whose last payload tells it to the node.
        """
        (schedule,) = phases(self.inner).plans(share).values()
        exchange, idle = self.inner.exchange(share), _memory_of(bucket).share is None
        told, done = 0, 0
        result: Any = None  # as next() would send
        try:
            while done < len(schedule):
                collective = exchange.send(result)
                done += 1
                if isinstance(collective, AllGather):
                    sound = share.finite and (done < len(schedule) or share.memory.sound())
                    bucket.overflow = bucket.overflow or not sound
                result = yield from _among_peers(collective, share.workers, idle)
                if isinstance(collective, AllGather):
                    told |= header.flags(result)
            if told & header.NONFINITE:
                raise NonFiniteGradient
            share.memory.stage(part)
            exchange.send(result)
        except StopIteration as stop:
            part[:] = stop.value
        except NonFiniteGradient:  # on all peers alike, but the workers with other shares go on
            bucket.overflow = bucket.hollow = True
            part[:] = 0
            exchange.close()
            for kind in schedule[done:]:
                yield _nothing(kind, share.workers)
        bucket.requests |= share.agreed_requests | told & (header.FLUSH | header.DISCARD)


def _among_peers(collective: Collective, workers: int, idle: bool) -> Generator[Collective, Array, Array]:
    """Yield a collective among the peers, and return its result. A worker without a share, which has none, gets what it
    would if they all handed over the same: so its formats are those of the others."""
    if idle and isinstance(collective, Broadcast):
        collective = dataclasses.replace(collective, root=0)
    result = yield dataclasses.replace(collective, scope=PEERS)
    return np.repeat(result[:1], workers, axis=0) if idle and isinstance(collective, (AllGather, AllToAll)) else result


def _nothing(kind: type[Collective], workers: int) -> Collective:
    """Return a collective among the peers whose result nobody will look at."""
    if kind is AllGather:
        payload = np.zeros(header.NBYTES, np.uint8)
        header.write(payload, codec=header.CUSTOM, count=0, elements=0, capacity=0)
        return AllGather(payload, PEERS)
    if kind is AllToAll:
        return AllToAll(np.zeros((workers, 1), np.uint8), PEERS)
    if kind is ReduceScatter:
        return ReduceScatter(np.zeros((workers, 1), np.float32), PEERS)
    values = np.zeros(1, np.float32)
    return Broadcast(values, scope=PEERS) if kind is Broadcast else AllReduce(values, scope=PEERS)


def _take_over(bucket: Bucket, share: Bucket, asked: Array, tells: bool) -> None:
    """Begin a step of the share, with what the workers of the node know and ask.

    Where the peers tell each other nothing, what is not finite shows in the sums, and what one node alone knows must
    not be told in it."""
    share.step = bucket.step
    share.target = share.sent = 0
    share.agreed_requests = 0
    bucket.hollow = False
    bucket.overflow = tells and bool(asked[0])
    bucket.requests |= header.FLUSH * bool(asked[1]) | header.DISCARD * bool(asked[2])
    share.overflow, share.requests = bucket.overflow, bucket.requests


def _memory_of(bucket: Bucket) -> ShareMemory:
    assert isinstance(bucket.memory, ShareMemory)
    return bucket.memory


def _share_of(bucket: Bucket) -> Bucket:
    """Return the bucket in which the wrapped compressor finds this worker's share of another one."""
    memory, topology = _memory_of(bucket), bucket.topology
    if memory.bucket is None or memory.bucket.memory is not memory.inner:
        idle = memory.share is None
        memory.bucket = Bucket(
            name=f"{bucket.name}.share{topology.place(bucket.rank)}",
            size=memory.length,
            memory=memory.inner,
            kernels=bucket.kernels,
            rank=0 if idle else topology.node(bucket.rank),
            workers=len(topology.nodes),
            seed=bucket.seed,
            state=bucket.state,
        )
    share: Bucket = memory.bucket
    share.step, share.loss_scale = bucket.step, bucket.loss_scale
    return share
