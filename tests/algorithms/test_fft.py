"""FFT sparsification: which frequencies, what becomes of them, and what stays."""

import math
from typing import Any

import numpy as np
import pytest

from hvd_compress import FFT, CorruptPayload, DiminishingTheta, kernels
from hvd_compress.codecs import header, range_float
from hvd_compress.codecs.range_float import RangeFloat
from hvd_compress.codecs.spectrum import SpectrumFormat
from hvd_compress.kernels.fourier import Transform
from tests.gradients import DISTRIBUTIONS, gradient
from tests.recording import Recorder
from tests.simulation import Simulation

BLOCKS = [4096, 64, None]


def read(payload: np.ndarray, pairs: int) -> tuple[dict[int, tuple[float, float]], RangeFloat]:
    """Pairs by index, from the format's description; one bit at a time."""
    data = payload.tobytes()
    codec, count = data[1], int.from_bytes(data[4:8], "little")
    elements, capacity = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
    assert pairs <= (elements + 1) // 2 + 1
    bits, mantissa = data[16], data[17]
    low, high = np.frombuffer(data[24:32], "<f4").tolist()
    at = 40
    if codec == 32:
        number = int.from_bytes(data[at : at + -(-pairs // 64) * 8], "little")
        indices = [i for i in range(pairs) if number >> i & 1]
        at += -(-pairs // 64) * 8
    else:
        width = 2 if capacity < 65_536 else 4
        blocks = -(-pairs // 65_536)
        counts = np.frombuffer(data[at : at + blocks * width], f"<u{width}")
        at += -(-blocks * width // 8) * 8
        positions = np.frombuffer(data[at : at + 2 * capacity], "<u2").tolist()
        indices = [p + 65_536 * b for p, b in zip(positions, np.repeat(np.arange(blocks), counts), strict=False)]
        at += 2 * capacity
    assert len(indices) == count
    number = int.from_bytes(data[at:], "little")
    f = RangeFloat(bits, mantissa, low, high)
    codes = [number >> i * bits & (1 << bits) - 1 for i in range(2 * count)]
    assert number >> 2 * count * bits == 0
    values = f.table[codes].tolist()
    return dict(zip(indices, zip(values[::2], values[1::2], strict=True), strict=True)), f


def exact_inverse(spectrum: dict[int, tuple[float, float]], size: int, block: int | None) -> np.ndarray:
    """By cosines and sines in float64: every pair's contribution on its own (small cases only)."""
    x = np.zeros(size)
    unit = block or 1 << max(size - 1, 0).bit_length()
    for index, (re, im) in spectrum.items():
        whole = size - size % block if block else 0
        begin = index * 2 // block * block if block and index * 2 < whole else whole
        n = min(block or size, size - begin)
        k = index - begin // 2
        phase = 2 * np.pi * k * np.arange(n) / n
        wave = (
            re + im * np.cos(np.pi * np.arange(n)) if k == 0 else np.sqrt(2) * (re * np.cos(phase) - im * np.sin(phase))
        )
        x[begin : begin + n] += np.sqrt(unit / n) * wave
    return x


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("distribution", sorted(set(DISTRIBUTIONS) - {"huge"}))
def test_conservation(block: int | None, distribution: str, recorder: Recorder) -> None:
    """memory + what the receivers reconstruct == memory + gradient, in float64, within the rounding of one inverse
    transform and one subtraction: 2^-24 (3 + log2(unit)) times the norms of both. And the mean is the mean."""
    size, workers = 4099 if block != 64 else 1003, 2
    sim = Simulation(FFT(block=block, min_numel=1), workers)
    transform = Transform(kernels.get(), size, block)
    for step in range(3):
        gradients = [gradient(distribution, size, step, rank) for rank in range(workers)]
        before = [c.state_dict().get("memory", {}).get("w", {}).get("residual", np.float32(0)) for c in sim.compressors]
        recorder.clear()
        mean = sim.step({"w": gradients})["w"].astype(np.float64)
        total = np.zeros(size)
        for rank, c in enumerate(sim.compressors):
            a = (before[rank] + gradients[rank]).astype(np.float64)
            (payload,) = recorder.payloads(rank)
            decoded = exact_inverse(read(payload, transform.pairs)[0], size, block)
            rest = c.state_dict()["memory"]["w"]["residual"].astype(np.float64)
            bound = 2.0**-24 * (3 + np.log2(transform.unit)) * (np.linalg.norm(a) + np.linalg.norm(decoded))
            assert np.linalg.norm(decoded + rest - a) <= bound + 1e-44 * size
            total += decoded
        bound = 2.0**-24 * (5 + np.log2(transform.unit)) * np.linalg.norm(total)
        assert np.linalg.norm(mean - total / workers) <= bound + 1e-44 * size


@pytest.mark.parametrize("block", BLOCKS)
def test_one_worker_keeps_exactly_the_rest(block: int | None) -> None:
    """With one worker the mean is what it decodes itself, and the memory the float32 difference, bit for bit."""
    sim = Simulation(FFT(block=block, min_numel=1), 1)
    before = np.float32(0)
    for step in range(3):
        g = gradient("mixed_scales", 10_001, step)
        mean = sim.step({"w": [g]})["w"]
        after = sim.compressors[0].state_dict()["memory"]["w"]["residual"]
        np.testing.assert_array_equal(after, (before + g) - mean)
        before = after


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("distribution", ["normal", "heavy_tailed", "mixed_scales", "rising", "ties"])
def test_the_strongest_are_sent(block: int | None, ratio: float, distribution: str, recorder: Recorder) -> None:
    """Exactly k pairs (fewer only if the others have no energy), and none stronger is left out."""
    size = 30_011
    g = gradient(distribution, size, 5)
    Simulation(FFT(ratio, block=block, min_numel=1), 1).step({"w": [g]})
    transform = Transform(kernels.get(), size, block)
    sent = sorted(read(recorder.payloads(0)[0], transform.pairs)[0])
    spectrum = np.empty(2 * transform.pairs, np.float32)
    transform.forward(g, spectrum)
    energy = np.square(spectrum.astype(np.float64)).reshape(-1, 2).sum(1)
    k = max(1, round(ratio * transform.pairs))
    assert len(sent) == min(k, np.count_nonzero(energy))
    left = np.delete(energy, sent)
    assert energy[sent].min() >= left.max(initial=0) * (1 - 2.0**-20)


def test_zero_and_nyquist_frequency_have_their_own_weight(recorder: Recorder) -> None:
    """Of a constant (energy n a^2) and a wave (energy n b^2 / 2) the one with more energy is sent."""
    n, t = 64, np.arange(64)
    for constant, wave, expected in ((1.0, 1.3, 0), (1.0, 1.5, 5)):
        for carrier in (np.ones(n), (-1.0) ** t):
            recorder.clear()
            g = (constant * carrier + wave * np.cos(2 * np.pi * 5 * t / n)).astype(np.float32)
            Simulation(FFT(1 / 32, block=64, min_numel=1), 1).step({"w": [g]})
            assert list(read(recorder.payloads(0)[0], 32)[0]) == [expected]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_one_inverse_transform_of_the_sum(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workers there are; and one more for the memory, if there is one."""
    calls = []
    original = Transform.synthesize

    def synthesize(self: Transform, *arguments: Any) -> None:
        calls.append(self)
        original(self, *arguments)

    monkeypatch.setattr(Transform, "synthesize", synthesize)
    for error_feedback in (False, True):
        calls.clear()
        sim = Simulation(FFT(error_feedback=error_feedback, min_numel=1), workers)
        sim.step({"w": [gradient("normal", 5000, rank) for rank in range(workers)]})
        assert len(calls) == workers * (1 + error_feedback)


def test_stochastic_rounding_is_unbiased() -> None:
    """All frequencies, 5 bits, no memory: the mean over seeds comes to the gradient."""
    g = gradient("laplace", 500, 0)
    total, runs = np.zeros(500), 600
    errors = []
    for seed in range(runs):
        c = FFT(1.0, bits=5, block=64, rounding="stochastic", error_feedback=False, seed=seed, min_numel=1)
        mean = Simulation(c, 1).step({"w": [g]})["w"].astype(np.float64)
        total += mean
        errors.append(np.linalg.norm(mean - g))
    off = np.linalg.norm(total / runs - g)
    assert off < 1.3 * np.mean(errors) / np.sqrt(runs)
    nearest = Simulation(FFT(1.0, bits=5, block=64, error_feedback=False, min_numel=1), 1).step({"w": [g]})["w"]
    assert np.linalg.norm(nearest - g) < np.mean(errors)


def test_smooth_gradients_need_few_frequencies() -> None:
    """What the frequency domain is good at: 1 % of it holds a smooth signal that top-k cannot hold."""
    t = np.arange(40_960) / 4096
    g = (np.sin(2 * np.pi * 3 * t) + 0.5 * np.cos(2 * np.pi * 17 * t) + 0.2).astype(np.float32)
    mean = Simulation(FFT(0.01, min_numel=1), 1).step({"w": [g]})["w"]
    assert np.linalg.norm(mean - g) < 0.01 * np.linalg.norm(g)


def test_diminishing_theta_sends_everything_in_the_end(recorder: Recorder) -> None:
    theta = DiminishingTheta(0.9, every=2)
    sim = Simulation(FFT(theta, min_numel=1), 1)
    counts = []
    for step in range(6):
        recorder.clear()
        sim.step({"w": [gradient("normal", 4096, step)]})
        counts.append(int.from_bytes(recorder.payloads(0)[0][4:8].tobytes(), "little"))
    assert counts == [round(theta(step) * 2048) for step in range(6)]
    assert counts == sorted(counts)
    assert theta(10**9) > 0.9999


def payload_of(layout: SpectrumFormat) -> np.ndarray:
    k = kernels.get()
    values = gradient("normal", 2 * layout.capacity, 1)
    indices = np.arange(layout.capacity, dtype=np.uint32)
    payload = np.full(layout.nbytes, 0xAA, np.uint8)
    number = range_float.fit(k, values, layout.bits, None, float(values.min()), float(values.max()))
    layout.encode(k, indices, values, number, None, payload)
    return payload


@pytest.mark.parametrize("capacity", [8, 4000])
def test_corrupt_payloads(capacity: int) -> None:
    """Wrong headers, blocks, formats and places raise before anything is written."""
    layout = SpectrumFormat(20_000, 10_000, 4096, capacity, 8)
    good = payload_of(layout)
    assert good[1] == header.SPECTRUM + (capacity == 8)
    out, transform = np.full(20_000, 7, np.float32), Transform(kernels.get(), 20_000, 4096)
    places_at = 48 if capacity == 8 else 40
    for offset in (0, 1, 4, 8, 12, 16, 17, 18, 20, 24 + 3, 28 + 3, 32, 36, places_at):
        bad = np.stack([good, good])
        bad[1, offset] ^= 0xFF
        with pytest.raises(CorruptPayload):
            layout.decode(transform, bad, 1.0, None, out)
        assert (out == 7).all()
    with pytest.raises(CorruptPayload, match="shape"):
        layout.decode(transform, good[None, :-1], 1.0, None, out)
    assert layout.decode(transform, good[None], 1.0, None, out) is out


def test_payload_size() -> None:
    """16 of header, 16 of format, 8 of block; a bitmap where it is smaller; then N bits a number."""
    assert SpectrumFormat(1_000_000, 500_000, 4096, 50_000, 8).nbytes == 40 + -(-500_000 // 64) * 8 + 100_000
    assert SpectrumFormat(1_000_000, 500_000, 4096, 5000, 6).nbytes == 40 + 16 + 10_000 + 7504


def test_random_rounding_is_not_fed_back() -> None:
    """Frequencies far below the smallest code would come back many times as large, and the memory grow without end."""
    size, rng = 4096, np.random.default_rng(2)
    wave = np.cos(2 * np.pi * 100 * np.arange(size) / size).astype(np.float32)
    sim = Simulation(FFT(0.5, bits=4, mantissa=4, rounding="stochastic", min_numel=1), 1)
    norms = []
    for step in range(1, 2001):
        g = 1000 * wave + rng.standard_normal(size, np.float32)
        sim.step({"w": [g]})
        if step % 500 == 0:
            held = sim.compressors[0].state_dict()["memory"]["w"]["residual"]
            norms.append(float(np.linalg.norm(held)) / math.sqrt(size))
    assert max(norms) < 3


def test_the_scipy_s_version_is_agreed_upon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It transforms what is left of a bucket behind the last block, on every rank for itself."""
    import scipy

    class Other:
        count = 0

        def __format__(self, specification: str) -> str:
            self.count += 1
            return f"1.{self.count}"

    monkeypatch.setattr(scipy, "__version__", Other())
    with pytest.raises(ValueError, match=r"ranks disagree on the compressor: .*SciPy 1\.\d+"):
        Simulation(FFT(), 2).step({"w": [np.ones(5000, np.float32)] * 2})


@pytest.mark.parametrize("block", [1024, None])
def test_a_memory_without_gradients_becomes_zero(block: int | None) -> None:
    """It shrinks to numbers below 2**-126, with which processors are slow, and these are zero at once."""
    sim = Simulation(FFT(0.5, block=block, min_numel=1), 1)
    sim.step({"w": [gradient("laplace", 3000, 1) * np.float32(1e-30)]})
    tiny = np.finfo(np.float32).tiny
    for _ in range(60):
        sim.step({"w": [np.zeros(3000, np.float32)]})
        held = np.abs(sim.compressors[0].state_dict()["memory"]["w"]["residual"])
        assert not ((held > 0) & (held < tiny)).any()
    assert not held.any()
