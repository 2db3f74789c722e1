"""What becomes of a step whose exchanges have all come to their last results: means, or nothing, and a flush."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.exchange import AllReduce
from hvd_compress.runtime.buckets import ParameterBucket, naming
from hvd_compress.runtime.core import StepCore
from hvd_compress.runtime.exchange_run import requests
from hvd_compress.runtime.transport import Handle, Transport


def telling(core: StepCore, transport: Transport, finite: bool) -> Generator[Handle, None, int]:
    """Tell each other what payloads do, where there is none because nothing is compressed; return all workers'
    flags. It is a sum, in which a worker that has joined counts as zeros."""
    flags = requests(core.compressor) | (0 if finite else header.NONFINITE)
    mine = np.array([bool(flags & flag) for flag in header.FLAGS], np.int32)
    handle = transport.start(AllReduce(mine), f"{core.label}.flags")
    yield handle
    told = transport.result(handle)
    return sum(flag for flag, workers in zip(header.FLAGS, told, strict=True) if workers)


def reserve(buckets: Sequence[ParameterBucket], *, flush: bool) -> None:
    """See to it that there is room for what is done when memories have been committed: a flush needs what is held
    back, of all buckets, joined, and its sum."""
    for bucket in buckets:
        with naming(bucket.bucket):
            bucket.exchange.reserve()
    if flush:
        for place in {bucket.members[0].place for bucket in buckets}:
            there = [bucket for bucket in buckets if bucket.members[0].place == place]
            held = [len(bucket.bucket.memory.arrays()) * 4 * bucket.bucket.size for bucket in there]
            with naming(there[held.index(max(held))].bucket):
                there[0].bucket.kernels.reserve(sum(held) + 2 * max(held))


def decode(buckets: Sequence[ParameterBucket], flags: int) -> bool:
    """Make the means, as the ``flags`` of all workers want it. Return whether they are to be used: only the results may
    say that they are not finite, if no worker had been told."""
    for bucket in buckets:
        run = bucket.exchange
        with naming(bucket.bucket, decoding=not flags & header.DISCARD):
            if flags & header.NONFINITE:
                run.abandon()
            elif flags & header.DISCARD:
                run.decode(bucket.bucket.kernels.empty(bucket.bucket.size))
            else:
                run.decode()
    if flags & header.NONFINITE:
        return False
    if any(bucket.exchange.flags & header.NONFINITE for bucket in buckets):
        for bucket in buckets:
            bucket.exchange.mean[:] = 0
        return False
    return True


def flushing(core: StepCore, transport: Transport, buckets: Sequence[ParameterBucket]) -> Iterator[Handle]:
    """All-reduce what the memories still hold, and add it to the means; yield what must be waited for."""
    handles: list[tuple[ParameterBucket, Handle]] = []
    for bucket in buckets:
        name = f"{core.label}.{bucket.bucket.name}.flush"
        with naming(bucket.bucket, decoding=True):
            parts = bucket.bucket.memory.flush_parts()
            rest = parts[0] if len(parts) == 1 else bucket.bucket.kernels.joined(parts)
            handles.append((bucket, transport.start(AllReduce(rest), name)))
        core.total.sent_bytes += rest.nbytes
    for bucket, handle in handles:
        yield handle
        with naming(bucket.bucket, decoding=True):
            total = bucket.bucket.kernels.scaled(transport.result(handle), 1 / transport.workers)
            bucket.exchange.mean += bucket.bucket.memory.take_flush(total)
