import numpy as np
import pytest

from hvd_compress import CorruptPayload, Half
from hvd_compress.exchange import AllGather, AllToAll, Bucket
from hvd_compress.kernels import get
from hvd_compress.memory import Memory
from tests.gradients import gradient
from tests.simulation import Simulation

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_bfloat16_is_rounded_once_and_summed_in_float32(workers: int) -> None:
    arrays = [gradient("heavy_tailed", 3001, rank) for rank in range(workers)]
    mean = Simulation(Half(), workers).step({"w": arrays})["w"]
    expected = np.zeros(3001, np.float32)
    for array in arrays:
        rounded = torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()
        expected += rounded * np.float32(1 / workers)
    np.testing.assert_array_equal(mean, expected)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_float16_is_within_eleven_bits_for_every_addition(workers: int) -> None:
    arrays = np.stack([gradient("heavy_tailed", 3001, rank) for rank in range(workers)])
    mean = Simulation(Half("float16"), workers).step({"w": list(arrays)})["w"]
    exact = arrays.mean(axis=0, dtype=np.float64)
    # N roundings to float16 of what is sent and N - 1 of the sums, each half of 2**-10 of at most the sum of magnitudes
    bound = np.abs(arrays).astype(np.float64).mean(axis=0) * workers * 2.0**-10 + workers * 2.0**-24
    assert (np.abs(mean - exact) <= bound).all()
    assert np.abs(mean - exact).max() > 0


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(array).to(getattr(torch, dtype)).to(torch.float32).numpy()


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_owners_of_regions_sum_in_float32_and_round_the_mean(dtype: str, workers: int) -> None:
    arrays = [gradient("heavy_tailed", 3001, rank) for rank in range(workers)]
    mean = Simulation(Half(dtype, aggregate="reduce-scatter"), workers).step({"w": arrays})["w"]
    expected = np.zeros(3001, np.float32)
    for array in arrays:
        expected += rounded(array, dtype) * np.float32(1 / workers)
    np.testing.assert_array_equal(mean, rounded(expected, dtype))


@pytest.mark.parametrize("size", [1, 2, 7, 9])
def test_there_may_be_fewer_elements_than_regions(size: int) -> None:
    compressor = Half(aggregate="reduce-scatter", min_numel=1)
    mean = Simulation(compressor, 8).step({"w": [np.arange(size, dtype=np.float32)] * 8})["w"]
    np.testing.assert_array_equal(mean, np.arange(size))


def test_what_is_handed_over_does_not_grow_with_the_workers() -> None:
    def sent(aggregate: str, workers: int) -> float:
        sim = Simulation(Half(aggregate=aggregate), workers)
        sim.step({"w": [np.ones(100_000, np.float32)] * workers})
        return sim.compressors[0].stats()["total"]["sent_bytes"]

    assert sent("all-gather", 8) == pytest.approx(2 * 100_000, rel=1e-3)
    # all rows of the all-to-all, this worker's own among them, and its region of the mean
    assert sent("reduce-scatter", 8) == pytest.approx(2 * 100_000 * (1 + 1 / 8), rel=1e-3)


def test_bfloat16_cannot_be_all_reduced() -> None:
    with pytest.raises(ValueError, match="aggregate='all-reduce' needs dtype='float16'"):
        Half(aggregate="all-reduce")


def test_float16_sum_does_not_overflow_where_the_mean_does_not() -> None:
    mean = Simulation(Half("float16", min_numel=1), 8).step({"w": [np.array([60000.0, -1.0])] * 8})["w"]
    np.testing.assert_allclose(mean, [60000.0, -1.0], rtol=2e-3)


def test_float16_overflow_is_infinite() -> None:
    """What a GradScaler looks for."""
    mean = Simulation(Half("float16", min_numel=1), 2).step({"w": [np.array([3e5, 1.0])] * 2})["w"]
    assert mean[0] == np.inf
    assert mean[1] == 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sends_half(dtype: str) -> None:
    sim = Simulation(Half(dtype), 2)
    sim.step({"w": [np.ones(100_000, np.float32)] * 2})
    assert sim.compressors[0].stats()["total"]["ratio"] == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("aggregate", ["all-gather", "reduce-scatter"])
@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65519.0), ("bfloat16", 3.39e38)])
def test_what_is_too_large_for_16_bits_is_known_to_all(aggregate: str, dtype: str, largest: float) -> None:
    """One worker has it; the step is not finite for any, as if it had been infinite before."""
    sim = Simulation(Half(dtype, aggregate=aggregate, min_numel=1), 2)
    ones = np.ones(3, np.float32)
    mean = sim.step({"w": [ones, np.array([1.0, largest, 1.0], np.float32)]})["w"]
    assert np.isfinite(mean).all()
    mean = sim.step({"w": [ones, np.array([1.0, 1.01 * largest, 1.0]).clip(-3.4e38, 3.4e38).astype(np.float32)]})["w"]
    assert np.isnan(mean).all()
    assert [one.stats()["total"]["skipped_steps"] for one in sim.compressors] == [1, 1]


@pytest.mark.parametrize("bits", [0xFFFF, 0x7F80])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("aggregate", "damaged"), [("all-gather", AllGather), ("reduce-scatter", AllToAll), ("reduce-scatter", AllGather)]
)
def test_what_is_not_finite_and_not_flagged_is_refused(aggregate: str, damaged: type, dtype: str, bits: int) -> None:
    memory = Memory(get(), 10)
    memory.begin([np.ones(10, np.float32)])
    exchange = Half(dtype, aggregate=aggregate).exchange(Bucket("w", 10, memory, get(), rank=0, workers=1, seed=0))
    collective = next(exchange)

    def received() -> np.ndarray:
        rows = collective.values if isinstance(collective, AllToAll) else collective.payload[None]
        if isinstance(collective, damaged):
            rows = rows.copy()
            rows[:, -2:] = np.array([bits], np.uint16).view(np.uint8)
        return rows

    if isinstance(collective, AllToAll):
        collective = exchange.send(received())
    memory.commit()
    with pytest.raises(CorruptPayload, match=f"a value in {dtype} is not finite, and no worker's flag says so"):
        exchange.send(received())
