"""Exchanges of algorithms, unchanged, over the device kernels: what is sent, means and memories are the host's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hvd_compress import (
    DGC,
    FFT,
    Dense,
    Half,
    QSGDMaxNorm,
    QSGDMaxNormMultiScale,
    RandKMaxNorm,
    RandKMaxNormMultiScale,
    SharedTopK,
    SIDCo,
    TernGrad,
    TopK,
)
from hvd_compress.exchange import AllGather, AllReduce, AllToAll, Bucket, sent_array
from hvd_compress.kernels import host
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.placement import PlacedKernels
from tests.kernels.buckets import make_bucket, same
from tests.kernels.device import DEVICE, DeviceKernels, array, tensor, torch

SIZE, WORKERS, STEPS = 400, 2, 2
KERNELS = PlacedKernels(DeviceKernels(DEVICE, host.KERNELS, tile=256), host.KERNELS)


def on_host(x):
    return array(x) if isinstance(x, torch.Tensor) else np.array(x)


def together(collectives):
    """What each worker gets of a collective of all, and what they sent; each may write to its own."""
    first, sent = collectives[0], [on_host(sent_array(collective)) for collective in collectives]
    if isinstance(first, AllGather):
        results = [np.stack(sent)] * WORKERS
    elif isinstance(first, AllToAll):
        results = [np.stack([rows[rank] for rows in sent]) for rank in range(WORKERS)]
    elif isinstance(first, AllReduce):
        results = [sent[0] + sent[1] if first.op == "sum" else np.maximum(*sent)] * WORKERS
    else:
        results = [sent[first.root]] * WORKERS
    on_device = isinstance(sent_array(first), torch.Tensor)
    return [tensor(result) if on_device else result.copy() for result in results], sent


def train(compressor, kernels, as_gradient):
    """Everything that the workers send in a few steps, and their means and memories after each."""
    buckets = [
        Bucket("w", SIZE, compressor.new_memory(kernels, SIZE), kernels, rank, WORKERS, seed=7)
        for rank in range(WORKERS)
    ]
    seen = []
    for step in range(STEPS):
        for bucket in buckets:
            bucket.step = step
            pieces = make_bucket(10 * step + bucket.rank, SIZE, "heavy tails", memory=False, cuts=[0.3]).pieces
            bucket.memory.begin([as_gradient(piece) for piece in pieces])
            compressor.limit_gradients(bucket)
        runs = [compressor.exchange(bucket) for bucket in buckets]
        results = [None] * WORKERS
        for _ in compressor.schedule:
            results, sent = together([run.send(result) for run, result in zip(runs, results, strict=True)])
            seen += sent
        for bucket, run, result in zip(buckets, runs, results, strict=True):
            bucket.memory.commit()
            with pytest.raises(StopIteration) as end:
                run.send(result)
            mean = end.value.value
            assert kernels.is_vector(mean, SIZE)
            seen += [on_host(mean), *map(on_host, bucket.memory.arrays().values())]
    return seen


SHORT = [
    TopK(ratio=0.05, wire="bfloat16"),
    SIDCo(ratio=0.05),
    DGC(ratio=0.05, clip=3.0),
    QSGDMaxNormMultiScale(bits=(4, 8)),
]
"""One of every kind of memory and of collective."""
MORE = [
    TopK(ratio=0.05),
    TopK(ratio=0.05, wire="range8"),
    TopK(ratio=0.05, aggregate="reduce-scatter", wire="float16"),
    SIDCo(ratio=0.05, fit="gamma-pareto", stages="adaptive", estimator="paper"),
    SharedTopK(ratio=0.05, low_pass=0.5),
    QSGDMaxNorm(bits=4),
    RandKMaxNorm(ratio=0.3, bits=4),
    RandKMaxNormMultiScale(ratio=0.3, error_feedback=False),
    TernGrad(chunk=100),
    TernGrad(chunk="layer", shared=True),
    Dense(),
    Half(),
    Half(aggregate="reduce-scatter"),
    Half(dtype="float16", aggregate="all-reduce"),
]


@pytest.mark.parametrize("compressor", [*SHORT, *(pytest.param(one, marks=pytest.mark.long) for one in MORE)], ids=repr)
def test_an_exchange_gives_the_same(compressor):
    """Bit for bit, also of what is sent."""
    expected = train(compressor, host.KERNELS, np.array)
    for x, y in itertools.zip_longest(train(compressor, KERNELS, tensor), expected):
        same(x, y)


@pytest.mark.parametrize("compressor", [TernGrad(chunk=100), Half(aggregate="reduce-scatter")], ids=repr)
def test_only_what_is_sent_comes_to_the_host(compressor, monkeypatch):
    """A payload of two bits an element, or a region of 16-bit means."""
    copied = []
    copy = Launcher.copy_to_host
    monkeypatch.setattr(
        Launcher, "copy_to_host", lambda self, *pairs: (copied.extend(x.nbytes for x, _ in pairs), copy(self, *pairs))
    )
    train(compressor, KERNELS, tensor)
    assert max(copied) <= 2 * SIZE / WORKERS


FFTS = [FFT(ratio=0.2, block=64), FFT(ratio=0.05, block=None, bits=12, rounding="stochastic")]
"""With a bitmap and what is behind the last block; with positions, and all as one."""


@pytest.mark.parametrize(
    "compressor", [FFTS[0], *(pytest.param(one, marks=pytest.mark.long) for one in FFTS[1:])], ids=repr
)
def test_an_exchange_of_spectra(compressor):
    """Rounded differently, but all workers have the same mean; and nothing is lost."""
    expected, seen = train(compressor, host.KERNELS, np.array), train(compressor, KERNELS, tensor)
    assert len(seen) == len(expected)
    for x, y in zip(seen, expected, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
    first, second = seen[2], seen[4]  # the means of the first step, behind what the two have sent
    same(first, second)
    assert np.linalg.norm(first - expected[2]) <= 1e-5 * np.linalg.norm(expected[2])
