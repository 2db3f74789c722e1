"""Exact top-k: the selection of ``torch.topk``, whatever the sample says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvd_compress import TopK, kernels
from hvd_compress.memory import Residual
from tests import wire
from tests.gradients import DISTRIBUTIONS, gradient
from tests.recording import Recorder
from tests.simulation import Simulation

torch = pytest.importorskip("torch")


def one_step(values: np.ndarray, ratio: float, **arguments: Any) -> np.ndarray:
    return Simulation(TopK(ratio, min_numel=1, **arguments), 1).step({"w": [values]})["w"]


def lowest_index_first(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest magnitudes; of equal ones those with the lowest index; zeros never."""
    order = np.lexsort((np.arange(len(values)), -np.abs(values.astype(np.float64))))[:k]
    out = np.zeros_like(values)
    out[order] = values[order]
    return out


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ratio", [0.5, 0.01, 0.001])
def test_selects_what_torch_selects(distribution: str, ratio: float) -> None:
    values = gradient(distribution, 200_003, 4)
    k = round(ratio * len(values))
    mean = one_step(values, ratio)
    expected = torch.topk(torch.from_numpy(np.abs(values)), k)
    np.testing.assert_array_equal(np.sort(np.abs(mean))[::-1][:k], expected.values.numpy())
    np.testing.assert_array_equal(mean, lowest_index_first(values, k))
    if len(np.unique(np.abs(values))) == len(values):  # no ties
        chosen = np.zeros_like(values)
        chosen[expected.indices.numpy()] = values[expected.indices.numpy()]
        np.testing.assert_array_equal(mean, chosen)


@given(
    values=arrays(np.float32, st.integers(1, 2000), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    ratio=st.floats(1e-3, 1),
)
def test_any_values(values: np.ndarray, ratio: float) -> None:
    np.testing.assert_array_equal(
        one_step(values, ratio), lowest_index_first(values, max(1, round(ratio * len(values))))
    )


def sampled_elements(compressor: TopK, size: int) -> np.ndarray:
    """Which elements the first step of rank 0 is going to sample: seen on a gradient that numbers them."""
    seen: list[np.ndarray] = []
    kernel_set = kernels.get()
    original = kernel_set.sample

    def sample(memory: Any, pieces: Any, key: int, lines: int, out: np.ndarray) -> Any:
        moments = original(memory, pieces, key, lines, out)
        seen.append(out[: moments.count].astype(np.int64))
        return moments

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_set, "sample", sample)
        Simulation(compressor, 1).step({"w": [np.arange(size, dtype=np.float32)]})
    return seen[0]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for every selection that was undone."""
    calls: list[int] = []
    original = Residual.restore

    def restore(memory: Residual, indices: Any, values: Any) -> None:
        calls.append(len(indices))
        original(memory, indices, values)

    monkeypatch.setattr(Residual, "restore", restore)
    return calls


@pytest.mark.parametrize("ratio", [0.05, 0.01])
def test_sample_sees_only_the_large_ones(ratio: float, restored: list[int]) -> None:
    """The threshold is far too high, fewer than k exceed it: all is put back, and selected again."""
    size = 300_000
    sampled = sampled_elements(TopK(ratio), size)
    assert len(sampled) < size / 2
    values = gradient("normal", size, 1)
    values[sampled] += np.float32(100)
    k = round(ratio * size)
    mean = one_step(values, ratio)
    assert restored
    np.testing.assert_array_equal(mean, lowest_index_first(values, k))


def test_sample_sees_only_the_small_ones(restored: list[int]) -> None:
    """The threshold is far too low, and nearly everything exceeds it: the k largest all the same."""
    size = 300_000
    compressor = TopK(0.01)
    values = gradient("normal", size, 1) + np.float32(100)
    values[sampled_elements(compressor, size)] = 1e-3
    np.testing.assert_array_equal(one_step(values, 0.01), lowest_index_first(values, 3000))
    assert not restored


def test_sample_sees_only_zeros(restored: list[int]) -> None:
    size = 300_000
    values = gradient("normal", size, 1)
    values[sampled_elements(TopK(0.01), size)] = 0
    np.testing.assert_array_equal(one_step(values, 0.01), lowest_index_first(values, 3000))


def test_restoring_without_memory(restored: list[int]) -> None:
    size = 300_000
    values = gradient("normal", size, 1)
    values[sampled_elements(TopK(0.01), size)] *= 1e6
    mean = one_step(values, 0.01, error_feedback=False)
    np.testing.assert_array_equal(mean, lowest_index_first(values, 3000))


@pytest.mark.parametrize("wire_type", ["float32", "bfloat16", "float16"])
def test_memory_follows_a_plain_implementation(wire_type: str) -> None:
    """20 steps of error feedback in five lines of NumPy and torch."""
    size, k = 5000, 250
    sim = Simulation(TopK(0.05, min_numel=1, wire=wire_type), 1)
    m = np.zeros(size, np.float32)
    for step in range(20):
        g = gradient("laplace", size, step)
        a = m + g
        chosen = lowest_index_first(a, k)
        decoded = torch.from_numpy(chosen).to(getattr(torch, wire_type)).to(torch.float32).numpy()
        m = a - decoded
        np.testing.assert_array_equal(sim.step({"w": [g]})["w"], decoded)
        np.testing.assert_array_equal(sim.compressors[0].state_dict()["memory"]["w"]["residual"], m)


def test_capacity_is_k_rounded_up_to_eight(recorder: Recorder) -> None:
    for size, k in ((100, 10), (10, 1), (3, 1), (160, 16)):
        recorder.clear()
        Simulation(TopK(0.1, min_numel=1), 1).step({"w": [np.ones(size)]})
        fields, entries = wire.read(recorder.payloads(0)[0].tobytes())
        assert len(entries) == k
        assert fields["capacity"] == -(-k // 8) * 8
