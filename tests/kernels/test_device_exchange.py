"""Exchanges of algorithms, unchanged, over the device kernels: what is sent, means and memories are the host's."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress import QSGDMaxNorm, QSGDMaxNormMultiScale, TopK
from hvd_compress.exchange import AllGather, Bucket, sent_array
from hvd_compress.kernels import host
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import DEVICE, STORED_AS, DeviceKernels, array, tensor, torch

SIZE, WORKERS, STEPS = 400, 2, 2
KERNELS = DeviceKernels(DEVICE, host.KERNELS, tile=256)


class DeviceBucket(Bucket):
    """A bucket whose large workspaces are on the device."""

    def scratch(self, name, length, dtype):
        if name in ("sample", "words", "planes"):
            dtype = np.dtype(dtype)
            return tensor(np.zeros(length, STORED_AS.get(dtype, dtype)))
        return np.zeros(length, dtype)


def on_host(x):
    return array(x) if isinstance(x, torch.Tensor) else np.array(x)


def together(collectives):
    """What a collective of all workers gives each of them, and what they sent."""
    sent = [on_host(sent_array(collective)) for collective in collectives]
    if isinstance(collectives[0], AllGather):
        return np.stack(sent), sent
    result = sent[0] + sent[1] if collectives[0].op == "sum" else np.maximum(*sent)
    return (tensor(result) if isinstance(sent_array(collectives[0]), torch.Tensor) else result), sent


def train(compressor, kernels, bucket_class, as_gradient, rounds):
    """Everything that the workers send in a few steps, and their means and memories after each."""
    buckets = [
        bucket_class("w", SIZE, compressor.new_memory(kernels, SIZE), kernels, rank, WORKERS, seed=7)
        for rank in range(WORKERS)
    ]
    seen = []
    for step in range(STEPS):
        for bucket in buckets:
            bucket.step = step
            pieces = make_bucket(10 * step + bucket.rank, SIZE, "heavy tails", memory=False, cuts=[0.3]).pieces
            bucket.memory.begin([as_gradient(piece) for piece in pieces])
        runs, result = [compressor.exchange(bucket) for bucket in buckets], None
        for _ in range(rounds):
            result, sent = together([run.send(result) for run in runs])
            seen += sent
        for bucket, run in zip(buckets, runs, strict=True):
            bucket.memory.commit()
            with pytest.raises(StopIteration) as end:
                run.send(result)
            seen += [on_host(end.value.value), *map(on_host, bucket.memory.arrays().values())]
    return seen


@pytest.mark.parametrize(
    ("compressor", "rounds"),
    [
        (TopK(ratio=0.05), 1),
        (TopK(ratio=0.05, wire="bfloat16"), 1),
        (QSGDMaxNorm(bits=4), 2),
        (QSGDMaxNormMultiScale(bits=(4, 8)), 3),
    ],
    ids=["TopK", "TopK with bfloat16", "QSGDMaxNorm", "QSGDMaxNormMultiScale"],
)
def test_an_exchange_gives_the_same(compressor, rounds):
    expected = train(compressor, host.KERNELS, Bucket, np.array, rounds)
    for x, y in zip(train(compressor, KERNELS, DeviceBucket, tensor, rounds), expected, strict=True):
        same(x, y)
