"""Memories on their own: what an algorithm that does more than select may rely on."""

from typing import Any

import numpy as np
import pytest

from hvd_compress import kernels
from hvd_compress.kernels import workspace
from hvd_compress.memory import Memory, MomentumCorrection, Residual

SIZE = 40


def workspaces(capacity: int) -> tuple[Any, Any]:
    return np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)


def after_one_step(memory: Memory) -> Memory:
    memory.begin([np.arange(SIZE, dtype=np.float32)])
    memory.values()
    memory.commit()
    return memory


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("selects_first", [False, True])
def test_values_of_a_gradient_that_is_not_finite_are_the_memory_alone(bad: float, selects_first: bool) -> None:
    memory = after_one_step(Residual(kernels.get(), SIZE))
    gradient = np.ones(SIZE, np.float32)
    gradient[3] = bad
    memory.begin([gradient])
    if selects_first:
        assert memory.select(0.0, 8, *workspaces(8)) == (0, 0, False)
    np.testing.assert_array_equal(memory.values(), np.arange(SIZE))
    assert not memory.finite
    memory.values()[:] = 77  # an algorithm may do what it likes with them
    memory.rollback()
    np.testing.assert_array_equal(memory.arrays()["residual"], np.arange(SIZE))


@pytest.mark.parametrize("make", [Residual, lambda k, n: MomentumCorrection(k, n, 0.5)], ids=["residual", "momentum"])
def test_restoring_undoes_a_selection(make: Any) -> None:
    """Of the momentum too, which a selection masks."""
    plain, undone = after_one_step(make(kernels.get(), SIZE)), after_one_step(make(kernels.get(), SIZE))
    for memory in (plain, undone):
        memory.begin([np.ones(SIZE, np.float32)])
    indices, values = workspaces(8)
    kept = undone.select(10.0, 8, indices, values).kept
    assert kept == 8
    undone.restore(indices[:kept], values[:kept])
    plain.values()
    for memory in (plain, undone):
        memory.commit()
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(undone.arrays()[name], array)


def accumulated_in_the_last_mean(memory: Memory, gradient: np.ndarray) -> None:
    """Begin a step whose gradient lies, in two pieces, where the last step's mean was handed out."""
    mean = after_one_step(memory).decoded()
    mean[:] = gradient
    memory.begin([mean[:10], mean[10:]])  # the pieces refer to the mean


@pytest.mark.parametrize("selects_first", [False, True])
@pytest.mark.parametrize(
    "make", [Memory, Residual, lambda k, n: MomentumCorrection(k, n, 0.5)], ids=["none", "residual", "momentum"]
)
def test_gradients_that_lie_in_the_last_mean_are_as_good_as_others(make: Any, selects_first: bool) -> None:
    """With ``zero_grad(set_to_none=False)`` frameworks accumulate in the mean that they were given."""
    gradient = np.linspace(-5, 5, SIZE, dtype=np.float32)
    memory, twin = make(kernels.get(), SIZE), after_one_step(make(kernels.get(), SIZE))
    accumulated_in_the_last_mean(memory, gradient)
    twin.begin([gradient])
    for one in (memory, twin):
        if selects_first:
            one.select(1.0, 8, *workspaces(8))
    np.testing.assert_array_equal(memory.values(), twin.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "make", [Memory, Residual, lambda k, n: MomentumCorrection(k, n, 0.5)], ids=["none", "residual", "momentum"]
)
def test_what_is_not_finite_in_the_last_mean_stays_known(make: Any, bad: float) -> None:
    """A selection that fails has written over the gradient already: nobody may look at it again."""
    memory = make(kernels.get(), SIZE)
    gradient = np.ones(SIZE, np.float32)
    gradient[3] = bad
    accumulated_in_the_last_mean(memory, gradient)
    assert not memory.select(0.5, 8, *workspaces(8)).finite
    memory.values()
    assert not memory.finite


def test_writing_to_what_was_handed_out_changes_no_memory() -> None:
    """Whoever has a view of the gradient that the next one was accumulated in may write to it."""
    memory = after_one_step(Residual(kernels.get(), SIZE))
    kept: list[np.ndarray] = []
    for _ in range(5):
        mean = memory.decoded()
        mean[:] = 1
        before = memory.arrays()["residual"].copy()
        kept.append(mean)
        memory.begin([mean[:10], mean[10:]])
        memory.values()
        memory.commit()
        for array in kept:
            array[:] = np.nan
        np.testing.assert_array_equal(memory.arrays()["residual"], before + 1)


def test_two_buffers_take_turns_under_gradients_that_accumulate_in_the_mean() -> None:
    memory = after_one_step(Residual(kernels.get(), SIZE))
    addresses = set()
    for _ in range(9):
        mean = memory.decoded()
        addresses.add(mean.ctypes.data)
        mean[:] = 1
        memory.begin([mean])
        memory.values()
        memory.commit()
    assert len(addresses) == 3  # one of them holds what is left over


def test_what_decays_comes_to_an_end() -> None:
    """Momentum that is multiplied by 0.9 in every step would stay at five times the least denormal for ever, and what a
    format cannot send, at whatever it is."""
    momentum = MomentumCorrection(kernels.get(), SIZE, 0.9)
    momentum.begin([np.full(SIZE, 2.0**-100, np.float32)])
    for _ in range(300):
        momentum.values()
        momentum.commit()
        momentum.begin([np.zeros(SIZE, np.float32)])
    assert not momentum.arrays()["momentum"].any()
    residual = Residual(kernels.get(), SIZE)
    residual.arrays()["residual"][:] = 1e-41
    residual.begin([np.zeros(SIZE, np.float32)])
    assert not residual.values().any()


@pytest.mark.parametrize("make", [Memory, Residual, lambda k, n: MomentumCorrection(k, n, 0.5)])
def test_pieces_are_the_values(make: Any) -> None:
    """Whoever asks for pieces gets what others get in one array: with the memory, and with the momentum."""
    asked, plain = after_one_step(make(kernels.get(), SIZE)), after_one_step(make(kernels.get(), SIZE))
    gradient = np.linspace(-1, 1, SIZE, dtype=np.float32)
    for memory in (asked, plain):
        memory.begin([gradient[:7], gradient[7:]])
    np.testing.assert_array_equal(np.concatenate(asked.pieces()), plain.values())


class Pooled:
    """The host's kernels, with a pool of arrays that may be exhausted."""

    pooled = True

    def __init__(self) -> None:
        self.exhausted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(kernels.get(), name)

    def empty(self, size: int) -> np.ndarray:
        if self.exhausted and size:
            raise MemoryError
        return np.empty(size, np.float32)


@pytest.mark.parametrize("make", [Residual, lambda k, n: MomentumCorrection(k, n, 0.5)], ids=["residual", "momentum"])
def test_a_step_for_which_there_is_no_room_leaves_the_memory(make: Any) -> None:
    pool = Pooled()
    memory = after_one_step(make(pool, SIZE))
    before = {name: array.copy() for name, array in memory.arrays().items()}
    pool.exhausted = True
    for _ in range(2):
        with pytest.raises(MemoryError):
            memory.begin([np.ones(SIZE, np.float32)])
        memory.rollback()
    for name, array in memory.arrays().items():
        np.testing.assert_array_equal(array, before[name])
    pool.exhausted = False
    after_one_step(memory)
