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
    mean = Simulation(TernGrad(chunk=300, clip=None, min_numel=1), 1).step({"w": [g]})["w"]
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
        total += Simulation(TernGrad(chunk=chunk, clip=None, seed=seed, min_numel=1), 1).step({"w": [g]})["w"]
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


def test_a_scale_for_each_layer() -> None:
    """Whether layers are buckets of their own, as in the first step, or are fused."""
    arrays = {name: gradient("normal", size, 4) for name, size in (("a", 100), ("b", 70_001), ("c", 30))}
    arrays["b"] *= np.float32(1000)
    sim = Simulation(TernGrad(chunk="layer", clip=None, min_numel=1), 1)
    for _ in range(3):
        for name, mean in sim.step({name: [array] for name, array in arrays.items()}).items():
            assert set(np.abs(mean).tolist()) <= {0.0, float(np.abs(arrays[name]).max())}


@pytest.mark.parametrize("chunk", ["layer", 700])
def test_a_scale_for_all_workers(chunk: int | str) -> None:
    """The largest: the sum of all workers' elements is a multiple of it, and unbiased still."""
    arrays = [gradient("normal", 2000, 5, rank) * np.float32(1 + rank) for rank in range(3)]
    total, runs = np.zeros(2000), 400
    for seed in range(runs):
        sim = Simulation(TernGrad(chunk=chunk, clip=None, shared=True, seed=seed, min_numel=1), 3)
        mean = sim.step({"w": arrays})["w"]
        total += mean
        for begin in range(0, 2000, 2000 if chunk == "layer" else 700):
            part = slice(begin, begin + 2000 if chunk == "layer" else begin + 700)
            scale = max(np.abs(array[part]).max() for array in arrays)
            steps = mean[part] * 3 / scale
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    scale = max(np.abs(array).max() for array in arrays)
    assert np.abs(total / runs - np.mean(arrays, axis=0)).max() < 5 * scale / np.sqrt(3 * runs)


def test_the_paper_s() -> None:
    """Layers, clipped at 2.5 standard deviations, and the largest scale of the workers."""
    arrays = [gradient("normal", 3000, 6, rank) * np.float32(1 + rank) for rank in range(2)]
    mean = Simulation(TernGrad(chunk="layer", shared=True, min_numel=1), 2).step({"w": arrays})["w"]
    scale = max(2.5 * array.std(dtype=np.float64) for array in arrays)
    assert set(np.round(mean * 2 / scale, 5).tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


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
