"""Integer gradients that load workers, regions and elements unevenly."""

from collections.abc import Callable

import numpy as np


def _normal(size: int, workers: int, step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(-500, 500, (workers, size)).astype(np.float32)


def _one_worker(size: int, workers: int, step: int) -> np.ndarray:
    """All large elements are worker 0's."""
    gradients = np.sign(_normal(size, workers, step))
    gradients[0] *= 4096
    return gradients


def _one_region(size: int, workers: int, step: int) -> np.ndarray:
    """All large elements are in the region of the last worker."""
    gradients = np.sign(_normal(size, workers, step))
    gradients[:, np.arange(size) // 16 % workers == workers - 1] *= 1024
    return gradients


def _cancel(size: int, workers: int, step: int) -> np.ndarray:
    """What one worker has, another has with the other sign, but for one."""
    gradients = _normal(size, workers, step)
    gradients[1:] = -gradients[0] * (np.arange(1, workers) % 2)[:, None]
    return gradients


def _begin(size: int, workers: int, step: int) -> np.ndarray:
    """All large elements come first, as those of one layer do."""
    gradients = np.sign(_normal(size, workers, step))
    gradients[:, :200] *= 512
    return gradients


def _alike(size: int, workers: int, step: int) -> np.ndarray:
    """All workers have the same."""
    return np.repeat(_normal(size, 1, step), workers, axis=0)


SKEWS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "none": _normal,
    "one worker": _one_worker,
    "one region": _one_region,
    "cancelling": _cancel,
    "beginning": _begin,
    "alike": _alike,
}
"""Gradients of shape ``(workers, size)`` from size, workers and step."""
