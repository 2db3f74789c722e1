"""Whole tensors, and kernels that run where their arguments are."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels import Kernels, host
from hvd_compress.kernels.device.placement import PlacedKernels
from hvd_compress.memory import MomentumCorrection, Residual
from tests.kernels.buckets import same
from tests.kernels.device import DEVICE, KERNELS, array, tensor, torch

PLACED = PlacedKernels(KERNELS, host.KERNELS)
NUMBERS = np.array([1.5, -0.0, 3e-40, -7.25, 3e38], np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_and_cleared(bad):
    x = NUMBERS.copy()
    assert PLACED.all_finite(tensor(x))
    x[2] = x[4] = bad
    there = tensor(x)
    assert not PLACED.all_finite(there)
    assert PLACED.clear_not_finite(there) == host.KERNELS.clear_not_finite(x) == 2
    same(array(there), x)


def test_arrays_do_the_same_on_the_device():
    there = tensor(NUMBERS)
    same(array(PLACED.scaled(there, 0.1)), host.KERNELS.scaled(NUMBERS, 0.1))
    out = PLACED.empty(5)
    assert PLACED.scaled(there, 1 / 3, out) is out
    same(array(out), host.KERNELS.scaled(NUMBERS, 1 / 3))
    same(array(PLACED.joined([there[1:], there])), host.KERNELS.joined([NUMBERS[1:], NUMBERS]))
    same(PLACED.on_host(there), NUMBERS)
    PLACED.put(there[1:3], np.array([8, 9], np.float32))
    PLACED.put(there[4:], 0)
    same(array(there), np.array([1.5, 8, 9, -7.25, 0], np.float32))
    for dtype in (np.uint8, np.uint16, np.uint32, np.int64, np.float16):
        words = PLACED.view(PLACED.empty(4), dtype)
        assert words.nbytes == 16
        assert words.itemsize == np.dtype(dtype).itemsize


def test_pieces_of_16_bits_are_scaled_as_float32():
    x = torch.tensor([[1.5, -3.0], [65504.0, 6e-8]], dtype=torch.float16, device=DEVICE)
    scaled = PLACED.scaled(x, 3.0)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, x.float() * 3, rtol=0, atol=0)


def test_a_kernel_runs_where_its_arguments_are():
    x = np.abs(NUMBERS)
    before = KERNELS.synchronizations
    assert PLACED.norm([x], False) == x.max()  # on the host: nothing waited
    assert KERNELS.synchronizations == before
    assert PLACED.norm([tensor(x)], False) == x.max()
    assert KERNELS.synchronizations == before + 1
    out = np.empty(2, np.float32)
    PLACED.take(tensor(NUMBERS), np.array([3, 0], np.uint32), out)
    same(out, np.array([-7.25, 1.5], np.float32))
    with pytest.raises(NotImplementedError, match="no kernel mark for tensors"):
        PLACED.mark(tensor(x))


def test_what_is_beside_something():
    there = tensor(NUMBERS)
    same(array(PLACED.beside(there, NUMBERS)), NUMBERS)
    same(PLACED.beside(NUMBERS, there), NUMBERS)
    assert PLACED.beside(there, there) is there
    assert PLACED.beside(NUMBERS, NUMBERS) is NUMBERS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_takes_the_place_of_numbers_that_are_not_finite(bad):
    x, y = NUMBERS.copy(), NUMBERS + 1
    for there in (tensor, np.array):
        same(PLACED.on_host(PLACED.if_finite(there(x), there(y))), x)
    x[3] = bad
    before = KERNELS.synchronizations
    found = PLACED.if_finite(tensor(x), tensor(y)), PLACED.if_finite(tensor(x), None)
    assert KERNELS.synchronizations == before
    for there in (found, (PLACED.if_finite(x, y), PLACED.if_finite(x, None))):
        same(tuple(map(PLACED.on_host, there)), (y, np.zeros(5, np.float32)))


def test_what_shares_memory():
    x, y = PLACED.empty(8), PLACED.empty(8)
    assert PLACED.overlap(x[:2], x[4:])
    assert not PLACED.overlap(x, y)
    assert not PLACED.overlap(x, NUMBERS)
    assert PLACED.is_vector(x[1:], 7)
    assert not PLACED.is_vector(NUMBERS, 5)
    assert not PLACED.is_vector(x.double(), 8)
    assert not PLACED.is_vector(x.reshape(2, 4), 8)


@pytest.mark.parametrize("make", [Residual, lambda k, n: MomentumCorrection(k, n, 0.5)], ids=["residual", "momentum"])
def test_a_memory_goes_to_the_host_and_back(make):
    """What a checkpoint holds is on the host, wherever the memory is; and so a run may go on elsewhere."""
    there, here = make(PLACED, 5), make(host.KERNELS, 5)
    for number, memory in enumerate((there, here)):
        memory.begin([NUMBERS if number else tensor(NUMBERS)])
        memory.values()
        memory.commit()
    held = there.read(slice(1, 4))
    for key, x in here.read(slice(1, 4)).items():
        same(held[key], x)
    moved = make(PLACED, 5)
    moved.write(slice(1, 4), held)
    for key, x in moved.arrays().items():
        same(array(x)[1:4], held[key])
        assert not array(x)[[0, 4]].any()
    moved.write(slice(0, 5), dict.fromkeys(held, 0))
    assert not any(array(x).any() for x in moved.arrays().values())


def test_a_mean_that_somebody_keeps_is_not_written_again():
    memory = Residual(PLACED, 5)
    memory.begin([tensor(NUMBERS)])
    memory.values()
    memory.commit()
    mean = memory.decoded()
    mean[:] = tensor(NUMBERS)
    kept = mean[1:3]
    del mean
    memory.begin([tensor(NUMBERS)])
    memory.values()
    same(array(kept), NUMBERS[1:3])


def test_every_kernel_has_its_place():
    """What is not on the device works on as many elements as are sent, or are in a sample."""
    on_host = {"kth_largest", "exceedances", "log_sum", "range_decode", "mark"}
    kernels = {name for name in dir(Kernels) if not name.startswith("_")}
    assert {name for name in kernels if not hasattr(KERNELS, name)} == on_host
    assert all(callable(getattr(PLACED, name)) for name in kernels - {"name", "pooled", "identity"})
