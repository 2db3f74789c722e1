"""What may be handed over as a gradient, and what is said of what may not."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import TopK
from tests.contract.configurations import parameters, simulation
from tests.gradients import gradient
from tests.simulation import Simulation

SHAPE = (60, 50)


def run(configuration: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    sim = simulation(configuration, 2)
    return b"".join(sim.step({"w": [array, array[::-1]]})["w"].tobytes() for array in arrays)


@parameters()
def test_dtypes_and_strides(configuration: dict[str, Any]) -> None:
    """float16, float64, transposed and strided gradients mean what their float32 copies do."""
    coarse = [gradient("laplace", 3000, step).reshape(SHAPE).astype(np.float16) for step in range(2)]
    expected = run(configuration, [array.astype(np.float32) for array in coarse])
    assert run(configuration, coarse) == expected
    assert run(configuration, [array.astype(np.float64) for array in coarse]) == expected
    assert run(configuration, [np.asfortranarray(array.astype(np.float32)) for array in coarse]) == expected
    spread = np.zeros((2, 60, 100), np.float32)
    spread[:, :, ::2] = coarse
    assert run(configuration, [array[:, ::2] for array in spread]) == expected
    swapped = [array.astype(">f4") for array in coarse]
    assert run(configuration, swapped) == expected


def test_float64_beyond_float32(caplog: pytest.LogCaptureFixture) -> None:
    """It counts as infinite, as float32 has it, and the worker says of which gradient; of one that is infinite, not."""
    sim = simulation({"name": "topk", "ratio": 1.0}, 2)
    for value in (1e38, 1e39, np.inf):
        mean = sim.step({"w": [np.full(2000, value), np.ones(2000)]})["w"]
        assert np.isfinite(mean).all() == (value == 1e38)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("float64 values beyond the range of float32")
    assert "'w'" in said


@parameters()
def test_gradients_are_not_changed_nor_kept(configuration: dict[str, Any]) -> None:
    """Also read-only ones; and what becomes of them, or of the means, after the step changes nothing."""
    left, right = simulation(configuration, 2), simulation(configuration, 2)
    for step in range(3):
        arrays = [gradient("normal", 2000, step, rank) for rank in range(2)]
        copies = [array.copy() for array in arrays]
        for copy in copies:
            copy.setflags(write=False)
        expected = left.step({"w": copies})["w"].copy()
        mean = right.step({"w": arrays})["w"]
        assert all((array == copy).all() for array, copy in zip(arrays, copies, strict=True))
        np.testing.assert_array_equal(mean, expected)
        mean[:] = 1e30
        for array in arrays:
            array[:] = np.nan


@parameters()
def test_means_are_the_caller_s_to_keep(configuration: dict[str, Any]) -> None:
    """The next steps, which reuse every buffer they can, do not write to them."""
    sim = simulation(configuration, 2)
    kept = []
    for step in range(4):
        mean = sim.step({"w": [gradient("normal", 2000, step, rank) for rank in range(2)]})["w"]
        kept.append((mean, mean.copy()))
    for mean, copy in kept:
        np.testing.assert_array_equal(mean, copy)


@parameters()
def test_order_of_names_does_not_matter_after_the_first_step(configuration: dict[str, Any]) -> None:
    def step(sim: Simulation, number: int, names: str) -> dict[str, bytes]:
        given = {name: [gradient("normal", 500, number, ord(name), rank) for rank in range(2)] for name in names}
        return {name: mean.tobytes() for name, mean in sim.step(given).items()}

    left, right = simulation(configuration, 2), simulation(configuration, 2)
    assert step(left, 0, "abc") == step(right, 0, "abc")
    assert step(left, 1, "abc") == step(right, 1, "cab")
    assert step(left, 2, "abc") == step(right, 2, "bca")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.bool_, np.complex64, np.str_])
def test_only_floating_point(dtype: type) -> None:
    with pytest.raises(TypeError, match=r"gradient 'layer.weight' has dtype .*only floating point"):
        Simulation(TopK(min_numel=1), 1).step({"layer.weight": [np.zeros(4, dtype)]})


def test_wrong_number_of_arrays() -> None:
    with pytest.raises(ValueError, match="gradient 'w' has 3 arrays for 2 workers"):
        Simulation(TopK(), 2).step({"w": [np.zeros(4)] * 3})


@pytest.mark.parametrize("second", [{"w": (5,)}, {"v": (4,)}, {"w": (4,), "v": (4,)}, {}, {"w": (4, 1)}], ids=str)
def test_names_and_shapes_are_fixed_by_the_first_step(second: dict[str, tuple[int, ...]]) -> None:
    sim = Simulation(TopK(min_numel=1), 2)
    sim.step({"w": [np.ones(4)] * 2})
    with pytest.raises(ValueError, match=r"gradients differ from the first step's in name or shape: (w|v|v, w)$"):
        sim.step({name: [np.ones(shape)] * 2 for name, shape in second.items()})
    assert sim.step({"w": [np.ones(4)] * 2})["w"].shape == (4,)


@pytest.mark.parametrize("min_numel", [1, 1000], ids=["compressed", "uncompressed"])
def test_workers_with_different_shapes(min_numel: int) -> None:
    with pytest.raises(ValueError, match=r"disagree|different collectives"):
        Simulation(TopK(min_numel=min_numel), 2).step({"w": [np.ones(4), np.ones(5)]})


def test_nothing_to_compress() -> None:
    sim = Simulation(TopK(), 2)
    for _ in range(3):
        np.testing.assert_array_equal(sim.step({"bias": [np.zeros(3), np.ones(3)]})["bias"], [0.5] * 3)
    assert Simulation(TopK(), 2).step({}) == {}


@pytest.mark.parametrize("workers", [0, -1, 1025, 2.0, "2", True])
def test_number_of_workers(workers: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="workers must be"):
        Simulation(TopK(), workers)


def test_a_loss_scale_that_nobody_would_look_at_is_refused() -> None:
    scaler = SimpleNamespace(get_scale=lambda: 2.0)
    compression = TopK(0.5)
    simulation = hvd_compress.Simulation(compression, 2)
    with pytest.raises(ValueError, match="Simulation does not get to know the loss scale"):
        simulation.compressors[0].use_grad_scaler(scaler)
    compression.use_grad_scaler(scaler)
    with pytest.raises(ValueError, match="Simulation does not get to know the loss scale"):
        hvd_compress.Simulation(compression, 2)
    compression.use_grad_scaler(scaler)  # it may yet serve PyTorch
