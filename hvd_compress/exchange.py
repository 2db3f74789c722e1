"""What an algorithm and a driver say to each other: collectives, and the bucket they are about.

An algorithm is a generator over plain NumPy arrays: it yields collectives and is sent their results. It knows no
framework, no Horovod and no MPI; a driver runs it. Where gradients are on a GPU, what has as many elements as they is a
tensor there instead; ``Bucket.device_scratch`` and ``ArrayOperations`` of the kernels make that no difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hvd_compress.codecs import header
from hvd_compress.kernels import (
    CorruptPayload,
    Float32,
    Kernels,
    Moments,
    Pieces,
    Selection,
    UInt8,
    UInt32,
    mix,
    sample_lines,
    workspace,
)
from hvd_compress.memory import Memory
from hvd_compress.topology import ALL, ALONE, Topology

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class AllReduce:
    """Combine ``values`` of all workers element by element; the result has the same shape and dtype.

    ``op`` is ``"sum"``, ``"max"`` or ``"min"``. ``values`` may be overwritten with the result. dtypes: int32, int64,
    float16, float32, float64 (what Horovod can reduce under both frameworks).

    Every collective has a ``scope``, the workers that it is among: ``"all"``; ``"node"``, those on this worker's node;
    or ``"peers"``, those that have this worker's place on theirs (see ``hvd_compress.topology``). "All workers" and
    "rank order" mean those of the scope.
    """

    values: Array
    op: str = "sum"
    scope: str = ALL


@dataclass(frozen=True, eq=False)
class AllGather:
    """Collect every worker's ``payload`` (uint8, one-dimensional, the same size everywhere).

    The payload begins with the common header of ``hvd_compress.codecs.header`` (``Bucket.payload`` writes it); the
    driver sets flags in it. The result is a uint8 array of shape ``(workers, len(payload))`` in rank order.
    """

    payload: UInt8
    scope: str = ALL


@dataclass(frozen=True, eq=False)
class Broadcast:
    """Give every worker the ``values`` of worker ``root``; all give arrays of the same shape and dtype. In a scope,
    ``root`` is a place in it."""

    values: Array
    root: int = 0
    scope: str = ALL


@dataclass(frozen=True, eq=False)
class ReduceScatter:
    """Sum ``values`` of all workers element by element, and give every worker a part of the sum.

    ``values`` has the shape ``(rows, n)``, the same everywhere, and float32 or float64. The i-th worker's result is the
    i-th row of the sum, of shape ``(n,)``; workers beyond the rows get an empty array.
    """

    values: Array
    scope: str = ALL


@dataclass(frozen=True, eq=False)
class AllToAll:
    """Give every worker a row of ``values``, the i-th the i-th row: uint8, shape ``(workers, n)``, the same everywhere.

    The result is a uint8 array of shape ``(workers, n)``: what each worker had for this one, in rank order.
    """

    values: UInt8
    scope: str = ALL


Collective = AllReduce | AllGather | Broadcast | ReduceScatter | AllToAll
Exchange = Generator[Collective, Array, Float32]


def sent_array(collective: Collective) -> Array:
    """Return what a worker hands over."""
    return collective.payload if isinstance(collective, AllGather) else collective.values


class NonFiniteGradient(ArithmeticError):
    """Raised by an exchange, on every worker alike, when a result shows that a gradient is not finite somewhere.

    The driver then abandons the step: ``Compressor.nonfinite`` says what becomes of the gradients, and every memory is
    as it was before the step.
    """


@dataclass(eq=False)
class Bucket:
    """A flat gradient on one worker, on its way through one exchange after the other.

    ``name`` identifies the bucket, the same on every worker; ``size`` is its element count. ``state`` is the
    algorithm's own: a dict of plain numbers and lists, saved with the compressor's state.
    """

    name: str
    size: int
    memory: Memory
    kernels: Kernels
    rank: int
    workers: int
    seed: int
    step: int = 0
    loss_scale: float = 1.0
    """What the gradients are multiplied by."""
    state: dict[str, Any] = field(default_factory=dict)
    target: int = 0
    """Elements the algorithm meant to send in this step (for statistics); 0 when it does not select."""
    sent: int = 0
    """Elements it did send."""
    extra_sent_bytes: int = 0
    """Bytes that this worker sent in this step by other ways than the exchange's collectives."""
    overflow: bool = False
    """A gradient outside the buckets (a bias, say) was not finite on this worker in this step."""
    kind: str = ""
    """What the compressor's ``prepare`` called its parameters."""
    members: tuple[str, ...] = ()
    """Names of its parameters; none for a tensor outside an optimizer."""
    plan: str = ""
    """Which of the compressor's ``plans`` this step follows."""
    tentative: bool = False
    """The exchange is run on made-up values, only to see what it yields."""
    requests: int = 0
    """What this worker asks of the step, as flags of ``codecs.header``: ``FLUSH`` to send everything that is held back,
    or ``DISCARD`` to leave memories as they were."""
    agreed_requests: int = 0
    """What some worker asks for, as ``maximum`` told."""
    hollow: bool = False
    """Whether the exchange has found out that the step is not finite, and only keeps the others company: what it sends
    is nobody's to look at, and may be of any dtype."""
    topology: Topology = ALONE
    """Which workers share a node: all, unless it is given."""
    _arrays: dict[str, tuple[np.dtype[Any], Array]] = field(default_factory=dict)
    """The workspaces, with the types that they were asked for as."""

    def __post_init__(self) -> None:
        if self.topology is ALONE:
            self.topology = Topology.single(self.workers)

    @property
    def values(self) -> Float32:
        """float32, shape ``(size,)``: the gradient, with the memory added. Whatever the exchange leaves in it when it
        returns is the new memory; a compressor without error feedback has no memory and may leave anything.

        The addition happens at the first access; ``sample`` and ``select`` do it on the fly and more cheaply. If a
        gradient is not finite and there is a memory, these are the values of the memory alone: the step is going to
        be abandoned everywhere, and the algorithm need not care.
        """
        self.memory.exposed = True
        return self.memory.values()

    @property
    def decoded(self) -> Float32:
        """float32, shape ``(size,)``: a buffer for the mean, uninitialized; only after the last collective. It is the
        caller's once the exchange has returned: the library does not write to it while anyone has it."""
        return self.memory.decoded()

    @property
    def finite(self) -> bool:
        """Whether all gradients seen so far in this step were finite on this worker. The driver tells the others in
        the flags of an all-gathered payload; an exchange without one tells them with ``maximum``."""
        return self.memory.finite and not self.overflow

    @property
    def pieces(self) -> Pieces:
        """``values`` as float32 arrays whose concatenation they are. Without a memory they are the gradients as they
        came, not copied, and only to be read; they stay what they are until the exchange returns."""
        return self.memory.pieces()

    def key(self, *salt: int) -> int:
        """64-bit key for counter-based randomness: (seed, step, bucket, salt), the same on every worker."""
        # by name: the same whatever a framework's order of parameters is
        return mix(self.seed, self.step, zlib.crc32(self.name.encode()), *salt)

    def private_key(self, *salt: int) -> int:
        """As ``key``, but different on every worker."""
        return self.key(self.rank + 1, *salt)

    def sample(self, elements: int) -> tuple[Float32, Moments]:
        """Return the magnitudes of about ``elements`` elements of ``values`` (a stratified sample of cache lines, or
        all when that is not much more), and their moments. The array is a workspace, valid until the next call."""
        lines, room = sample_lines(elements, self.size)
        out = self.scratch("sample", room, np.float32)
        moments = self.memory.sample(self.private_key(), lines, out)
        return out[: moments.count], moments

    def select(self, threshold: float, capacity: int) -> tuple[Selection, UInt32, Float32]:
        """Take the elements above ``threshold`` (at most the ``capacity`` largest) out of ``values``.

        Returns what was found, their ascending indices and their values, in workspaces valid until the next call.
        """
        indices = self.scratch("indices", workspace(capacity), np.uint32)
        values = self.scratch("selected", workspace(capacity), np.float32)
        selection = self.memory.select(threshold, capacity, indices, values)
        return selection, indices[: selection.kept], values[: selection.kept]

    def scratch(self, name: str, length: int, dtype: DTypeLike) -> Array:
        """Return an uninitialized workspace on the host, kept from step to step; it grows when ``length`` does."""
        return self._workspace(name, length, dtype, self.kernels.empty_on_host)

    def device_scratch(self, name: str, length: int, dtype: DTypeLike) -> Array:
        """Return a workspace as ``scratch`` does, but where the gradients are: for what has about as many elements."""
        return self._workspace(name, length, dtype, self.kernels.empty)

    def shares(self, array: Float32) -> bool:
        """Return whether ``array`` lies in a workspace or in the memory, where the next step writes."""
        overlap = self.kernels.overlap
        return any(overlap(array, own) for _, own in self._arrays.values()) or self.memory.shares(array)

    def payload(self, nbytes: int, codec: int = header.CUSTOM) -> UInt8:
        """Return a zeroed payload of ``nbytes`` bytes (the 16 of the header included), with its header written."""
        payload: UInt8 = self.scratch("payload", nbytes, np.uint8)
        payload[:] = 0
        header.write(payload, codec=codec, count=0, elements=self.size, capacity=0)
        return payload

    def _workspace(self, name: str, length: int, dtype: DTypeLike, empty: Callable[[int], Float32]) -> Array:
        held = self._arrays.get(name)
        if held is None or len(held[1]) < length or held[0] != dtype:
            words = empty(-(-length * np.dtype(dtype).itemsize // 4))
            held = self._arrays[name] = np.dtype(dtype), self.kernels.view(words, dtype)
        return held[1][:length]


_REQUESTS = {header.DISCARD: 2, header.FLUSH: 1}
"""What ``maximum`` sends for each request. The largest wins: a step that is discarded flushes nothing."""


def maximum(bucket: Bucket, value: float) -> Generator[Collective, Array, float]:
    """All-reduce the maximum over the workers of one non-negative number; for an exchange without an all-gather.

    It carries what the flags of a payload do elsewhere: a worker whose gradients are not all finite sends infinity, and
    where there is a memory a second number carries what is asked for (1: a flush; 2: that the step be discarded). A
    class whose exchange begins with this says ``signals = True``.

    Returns the maximum, rounded to float32.

    Raises:
        NonFiniteGradient: on every worker alike, if some worker's ``value`` or gradient is not finite, or if the value
            is beyond float32.
        CorruptPayload: what comes back is no maximum of what workers send.
    """
    with np.errstate(over="ignore"):
        number = np.float32(value)
    sent = [number if bucket.finite and number < np.inf else np.inf]
    if bucket.memory.holds_back:
        sent.append(next((code for flag, code in _REQUESTS.items() if bucket.requests & flag), 0))
    result = yield AllReduce(np.array(sent, np.float32), op="max")
    if not result[0] < np.inf:
        raise NonFiniteGradient(f"{bucket.name}: a gradient is not finite")
    if np.signbit(result[0]) or not set(result[1:].tolist()) <= {0, *_REQUESTS.values()}:
        raise CorruptPayload(f"{bucket.name}: the maximum of the workers' numbers, which are not negative, is {result}")
    bucket.agreed_requests = next((flag for flag, code in _REQUESTS.items() if code in result[1:]), 0)
    return float(result[0])
