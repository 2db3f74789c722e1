"""Indices of a leader that changes, and values that are summed."""

from typing import Any

import numpy as np
import pytest

from hvd_compress import CorruptPayload, SharedTopK, Simulation, TopK
from hvd_compress.codecs.index_set import IndexSetFormat
from tests.gradients import gradient
from tests.recording import Recorder
from tests.simulation import change_broadcasts


def residual(sim: Simulation, rank: int) -> np.ndarray:
    return sim.compressors[rank].state_dict()["memory"]["w"]["residual"]


def rows(size: int, step: int, workers: int) -> np.ndarray:
    return np.array([gradient("laplace", size, step, rank)[None] for rank in range(workers)])


def test_every_worker_leads_in_turn() -> None:
    sim = Simulation(SharedTopK(20 / 500, min_numel=1), 3)
    for step in range(7):
        given = rows(500, step, 3)
        inputs = [g[0] + (residual(sim, rank) if step else 0) for rank, g in enumerate(given)]
        mean = sim.step({"w": list(given)})["w"][0]
        chosen = np.sort(np.argsort(-np.abs(inputs[step % 3]), kind="stable")[:20])
        np.testing.assert_array_equal(np.flatnonzero(mean), chosen)
        np.testing.assert_allclose(mean[chosen], np.mean(inputs, axis=0)[chosen], rtol=1e-5, atol=1e-6)
        for rank, given_values in enumerate(inputs):
            left = residual(sim, rank)
            assert not left[chosen].any()
            np.testing.assert_array_equal(np.delete(left, chosen), np.delete(given_values, chosen))


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_low_pass_filter(beta: float) -> None:
    """``m = (1 - beta) m + beta (m + g - sent)``, equation 6 of the paper."""
    sim = Simulation(SharedTopK(20 / 500, low_pass=beta, min_numel=1), 2)
    before = np.zeros((2, 500))
    for step in range(5):
        given = rows(500, step, 2)
        inputs = before + given[:, 0]
        mean = sim.step({"w": list(given)})["w"][0]
        sent = np.where(mean != 0, inputs, 0)
        expected = (1 - beta) * before + beta * (inputs - sent)
        before = np.array([residual(sim, rank) for rank in range(2)], np.float64)
        np.testing.assert_allclose(before, expected, rtol=1e-5, atol=1e-6)


def test_bytes_do_not_grow(recorder: Recorder) -> None:
    """k float32 values; the leader's indices, about 10 bits each at a ratio of 0.01."""
    for workers in (2, 16):
        recorder.clear()
        sim = Simulation(SharedTopK(0.01), workers)
        sim.step({"w": list(rows(100_000, 0, workers))})
        told, indices, values = recorder.of(0)
        assert (told.array.nbytes, values.array.nbytes) == (8, 4 * 1000)
        assert indices.array.nbytes == pytest.approx(1000 * (6 + 2.5) / 8, rel=0.1)


def test_a_leader_that_has_less_to_send() -> None:
    """Adds elements that the others may have something of: at a ratio of 1, all."""
    rows = np.zeros((2, 1, 100), np.float32)
    rows[0, 0, [3, 50]], rows[1] = 1, 2
    sim = Simulation(SharedTopK(0.1, min_numel=1), 2)
    mean = sim.step({"w": list(rows)})["w"][0]
    assert np.count_nonzero(mean) == 10
    assert (mean[[3, 50]] == 1.5).all()
    np.testing.assert_array_equal(residual(sim, 1), np.where(mean != 0, 0, 2))
    np.testing.assert_array_equal(
        Simulation(SharedTopK(1.0, min_numel=1), 2).step({"w": list(rows)})["w"], rows.mean(0)
    )


def test_beside_topk() -> None:
    """Where workers see similar data, a leader's choice is about as good as everybody's own."""
    common = np.array([gradient("heavy_tailed", 20_000, step) for step in range(20)])

    def error(make: Any) -> float:
        sim = Simulation(make(0.01), 4)
        sent, true = np.zeros(20_000), np.zeros(20_000)
        for step in range(20):
            noise = np.array([gradient("normal", 20_000, step, rank) for rank in range(4)]) * np.float32(0.05)
            given = common[step] + noise
            true += given.mean(0, dtype=np.float64)
            sent += sim.step({"w": [g.reshape(200, 100) for g in given]})["w"].reshape(-1)
        return float(np.linalg.norm(sent - true) / np.linalg.norm(true))

    assert error(SharedTopK) < 1.1 * error(TopK) + 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low_pass": 0.0}, r"low_pass must be in \(0, 1\]"),
        ({"low_pass": 1.5}, r"low_pass must be in \(0, 1\]"),
        ({"low_pass": 0.5, "error_feedback": False}, "low_pass filters the memory"),
    ],
    ids=str,
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedTopK(**arguments)


def test_a_leader_that_tells_of_fewer_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = IndexSetFormat(500, 50, signs=False)

    def change(sent: np.ndarray) -> None:
        indices, _, _ = layout.decode(sent)
        layout.encode(indices[:49], np.ones(49, np.float32), 0.0, sent)

    change_broadcasts(monkeypatch, ".round", change)
    sim = Simulation(SharedTopK(0.1, min_numel=1), 2)
    with pytest.raises(CorruptPayload, match="49 shared indices, expected 50"):
        sim.step({"w": [gradient("laplace", 500, 0, rank).reshape(5, 100) for rank in range(2)]})
