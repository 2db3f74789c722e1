"""TernGrad: three values, in expectation the gradient."""

import numpy as np
import pytest

from hvd_compress import CorruptPayload, TernGrad
from hvd_compress.exchange import AllGather, Bucket
from hvd_compress.kernels import get
from hvd_compress.memory import Memory
from tests.gradients import gradient
from tests.recording import Recorder
from tests.simulation import Simulation


def test_three_values() -> None:
    g = gradient("normal", 1000, 0)
    mean = Simulation(TernGrad(chunk=300, min_numel=1), 1).step({"w": [g]})["w"]
    for begin in range(0, 1000, 300):
        part, sent = g[begin : begin + 300], mean[begin : begin + 300]
        scale = np.abs(part).max()
        assert set(np.abs(sent).tolist()) <= {0.0, float(scale)}
        assert (sent * part >= 0).all()
        assert sent[np.argmax(np.abs(part))] == part[np.argmax(np.abs(part))]


@pytest.mark.parametrize("chunk", [None, 64])
def test_unbiased(chunk: int | None) -> None:
    """Over seeds, the mean of an element is the element within 5 standard errors."""
    g, runs = gradient("laplace", 301, 1), 2000
    total = np.zeros(301)
    for seed in range(runs):
        total += Simulation(TernGrad(chunk=chunk, seed=seed, min_numel=1), 1).step({"w": [g]})["w"]
    scales = np.array([np.abs(g[i : i + (chunk or 301)]).max() for i in range(0, 301, chunk or 301)])
    scales = np.repeat(scales, chunk or 301)[:301]
    p = np.abs(g) / scales
    error = 5 * scales * np.sqrt(p * (1 - p) / runs) + 1e-6
    assert (np.abs(total / runs - g) <= error).all()


def test_workers_draw_for_themselves() -> None:
    g = gradient("normal", 2000, 2)
    mean = Simulation(TernGrad(min_numel=1), 16).step({"w": [g] * 16})["w"]
    assert len(np.unique(np.abs(mean))) > 10


def test_clipping() -> None:
    g = gradient("normal", 5000, 3)
    g[17] = 100
    mean = Simulation(TernGrad(clip=2.5, chunk=None, min_numel=1), 1).step({"w": [g]})["w"]
    assert mean[17] == pytest.approx(2.5 * g.std(dtype=np.float64), rel=1e-4)
    equal = np.full(50, 3.0, np.float32)
    np.testing.assert_array_equal(Simulation(TernGrad(clip=2.5, min_numel=1), 1).step({"w": [equal]})["w"], equal)


def test_two_bits(recorder: Recorder) -> None:
    Simulation(TernGrad(min_numel=1), 1).step({"w": [gradient("normal", 300_001, 0)]})
    assert recorder.payloads(0)[0].nbytes == 16 + 4 * 19 + 75_001


def test_corrupt_payloads() -> None:
    for offset, value in ((0, 9), (16 + 3, 0xC0), (16 + 2, 0xFF), (21, 3)):
        memory = Memory(get(), 10)
        memory.begin([np.ones(10, np.float32)])
        bucket = Bucket("w", 10, memory, get(), rank=0, workers=1, seed=0)
        exchange = TernGrad().exchange(bucket)
        sent = next(exchange)
        assert isinstance(sent, AllGather)
        payload = sent.payload[None].copy()
        payload[0, offset] = value
        if value == 0xFF:
            payload[0, offset + 1] = 0x7F
        memory.commit()
        with pytest.raises(CorruptPayload):
            exchange.send(payload)
