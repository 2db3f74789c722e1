"""A worker's buckets, and where each parameter's memory is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from hvd_compress.exchange import Bucket
from hvd_compress.kernels import Float32
from hvd_compress.memory import Memory
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.exchange_run import ExchangeRun
from hvd_compress.state import SavedState


@dataclass(eq=False)
class ParameterBucket:
    """A bucket and the parameters in it, one after the other; ``run`` is its exchange while a step is under way."""

    bucket: Bucket
    members: tuple[Parameter, ...]
    step: int = 0
    run: ExchangeRun | None = None
    flushed: bool = False
    """Whether the last step that counted was a flush: its memory is then the same on every worker."""
    standalone: bool = False
    """Whether it is of a tensor outside any optimizer."""
    parts: dict[str, slice] = field(init=False)
    """Where each parameter lies in the bucket, by name."""

    def __post_init__(self) -> None:
        self.parts = {}
        offset = 0
        for parameter in self.members:
            self.parts[parameter.name] = slice(offset, offset + parameter.size)
            offset += parameter.size

    @property
    def exchange(self) -> ExchangeRun:
        """Its exchange, which must be under way."""
        assert self.run is not None, f"no exchange of {self.members[0].name!r} is under way"
        return self.run

    def empty(self) -> None:
        """Forget what is held back."""
        for array in self.bucket.memory.arrays().values():
            array[:] = 0

    def cut(self, mean: Float32) -> list[Float32]:
        """Return the parameters' parts of a mean, as views."""
        return [mean[part] for part in self.parts.values()]


class BucketStore:
    """All buckets of a worker. A parameter's memory exists once: in the bucket that owns the parameter.

    To iterate is to get the buckets that own some parameter, in the order in which they were made.
    """

    def __init__(self) -> None:
        self.frozen: dict[str, dict[str, Float32]] = {}
        """The memories that are set aside, by parameter."""
        self._resting: set[str] = set()  # frozen on all workers in the last step: of these the buckets hold nothing
        self._before: dict[str, dict[str, Float32]] = {}  # what the buckets held of the others before this step
        self.made: list[ParameterBucket] = []
        """All buckets, also those whose parameters have moved to others."""
        self._owners: dict[str, ParameterBucket] = {}

    def __iter__(self) -> Iterator[ParameterBucket]:
        owners = set(self._owners.values())
        return iter([bucket for bucket in self.made if bucket in owners])

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters of all buckets."""
        for bucket in self:
            yield from bucket.members

    def add(self, bucket: ParameterBucket) -> None:
        """Take a new bucket in; its parameters' memories move to it from where they are."""
        self.made.append(bucket)
        self.claim(bucket)

    def claim(self, bucket: ParameterBucket) -> None:
        """Move the memories of a bucket's parameters in from the buckets that have them. Between steps only.

        The algorithm's state moves along with a bucket whose parameters are all the same.
        """
        if all(self._owners.get(name) is bucket for name in bucket.parts):
            return
        for name, part in bucket.parts.items():
            owner = self._owners.get(name)
            if owner is not None and owner is not bucket:
                _move(owner.bucket.memory, owner.parts[name], bucket.bucket.memory, part)
                if owner.members == bucket.members and not bucket.bucket.state:
                    bucket.bucket.state.update(copy.deepcopy(owner.bucket.state))
                bucket.step = max(bucket.step, owner.step)
            self._owners[name] = bucket

    def owned(self, bucket: ParameterBucket) -> list[str]:
        """Return the names of a bucket's parameters whose memory is there."""
        return [name for name in bucket.parts if self._owners[name] is bucket]

    def drop_empty(self) -> None:
        """Forget the buckets whose parameters have all moved to others."""
        self.made = list(self)

    def clear(self) -> None:
        """Forget all buckets, and what is set aside."""
        self.made.clear()
        self._owners.clear()
        self._forget_frozen()

    def restore(self, saved: SavedState) -> None:
        """Give all buckets what was saved of their parameters; the one that was made first owns a parameter."""
        self._forget_frozen()
        self._owners.clear()
        for bucket in self.made:
            bucket.empty()
            bucket.bucket.state.clear()
            bucket.step = saved.restore(bucket.bucket, bucket.parts)
            bucket.flushed = saved.flushed
            for name in bucket.parts:
                self._owners.setdefault(name, bucket)

    def roll_back(self) -> None:
        """Leave no trace of what is under way."""
        for bucket in self.made:
            if bucket.run is not None:
                bucket.run.rollback()
                bucket.run = None

    def freeze(self, bucket: ParameterBucket, name: str, frozen: bool) -> None:
        """Set a parameter's memory aside while it is frozen, and put it back when it is thawed. Between steps only.

        What a parameter holds back would otherwise go on moving it. What an algorithm leaves over of a frozen one is
        remembered in the bucket, as of any other, unless ``rest`` follows.
        """
        part, memory = bucket.parts[name], bucket.bucket.memory
        if frozen:
            if name not in self.frozen:
                self.frozen[name] = memory.read(part)
                memory.write(part, dict.fromkeys(self.frozen[name], 0))
            elif name not in self._resting:
                self._before[name] = memory.read(part)
            self._resting.discard(name)
        elif name in self.frozen:
            kept, held = self.frozen.pop(name), memory.read(part)
            self._resting.discard(name)
            self._before.pop(name, None)
            memory.write(part, {key: array + kept[key] for key, array in held.items()})

    def rest(self, name: str) -> None:
        """Have the step that has been settled leave no trace in the memory of a parameter that was frozen on all
        workers. Whatever became of the step, all that is held back of it is then what is set aside."""
        owner, kept = self._owners[name], self.frozen[name]
        for key, array in self._before.pop(name, {}).items():
            kept[key] += array
        owner.bucket.memory.write(owner.parts[name], dict.fromkeys(kept, 0))
        self._resting.add(name)

    def _forget_frozen(self) -> None:
        self.frozen.clear()
        self._resting.clear()
        self._before.clear()

    def rescale(self, factor: float) -> None:
        """Multiply all that is held back. Between steps only."""
        held = [bucket.bucket.memory.arrays() for bucket in self]
        for arrays in [*held, *self.frozen.values()]:
            for array in arrays.values():
                array *= np.float32(factor)

    def rescale_held(self, factors: Mapping[str, float]) -> None:
        """Multiply what is held back of these parameters, by name, and nothing else. Between steps only."""
        for bucket in self:
            held = bucket.bucket.memory.held_back()
            if held is None:
                continue
            (key,) = (key for key, array in bucket.bucket.memory.arrays().items() if array is held)
            for name, part in bucket.parts.items():
                if name in factors and self._owners[name] is bucket:
                    held[part] *= np.float32(factors[name])
                    if name in self.frozen:
                        self.frozen[name][key] *= np.float32(factors[name])

    def read(self) -> dict[str, dict[str, Float32]]:
        """Return copies of what is held back, by parameter and by the memory's names of its arrays."""
        memory: dict[str, dict[str, Float32]] = {}
        for bucket in self:
            for name in self.owned(bucket):
                memory[name] = bucket.bucket.memory.read(bucket.parts[name])
        for name, frozen in self.frozen.items():
            memory[name] = {key: memory[name][key] + array for key, array in frozen.items()}
        return memory

    def flushed(self) -> bool:
        """Return whether the last step that counted sent everything that was held back, of all parameters."""
        buckets = list(self)
        return bool(buckets) and all(bucket.flushed for bucket in buckets) and not self.frozen


@contextmanager
def naming(bucket: Bucket, *, decoding: bool = False) -> Iterator[None]:
    """Let a MemoryError inside of ``with`` name the bucket. ``decoding``: what the step sent is lost then."""
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(bucket.name, bucket.size, error, decoding=decoding) from error


def out_of_memory(name: str, size: int, cause: MemoryError, *, decoding: bool = False) -> MemoryError:
    """Return the error that says which bucket there is no memory for. Before a step is decoded nothing of it counts."""
    left = "What the step sent is lost, what it held back is kept" if decoding else "What is held back is as it was"
    return MemoryError(
        f"no memory for the bucket {name!r} of {size:,} elements ({4 * size / 2**20:,.1f} MiB for each of its arrays): "
        f"{cause or 'the allocator says no more'}. {left}; take a smaller bucket_mb, a "
        "compressor with fewer arrays, or a smaller batch"
    )


def _move(source: Memory, begin: slice, target: Memory, end: slice) -> None:
    """Move what is remembered of a parameter from where it is in one memory to where it is in another."""
    held = source.read(begin)
    target.write(end, held)
    source.write(begin, dict.fromkeys(held, 0))
