"""Gradients: the shapes of distribution that break compressors, and real ones."""

from collections.abc import Callable

import numpy as np


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def laplace(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.laplace(size=n)


def heavy_tailed(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(2, n)


def zeros(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.zeros(n)


def constant(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.full(n, -0.25)


def one_hot(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.eye(1, n, rng.integers(n)).reshape(-1) * 3.0 if n else np.zeros(0)


def mostly_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n) * (rng.random(n) < 0.1)


def nearly_all_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n) * (rng.random(n) < 0.001)


def denormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(-100, 101, n) * 2.0**-149


def huge(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(-1e38, 1e38, n) * (rng.random(n) < 0.5)


def ties(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.choice([-2.0, -1.0, 1.0, 2.0], n)


def mixed_scales(rng: np.random.Generator, n: int) -> np.ndarray:
    """A bucket of layers whose gradients differ by orders of magnitude, as in a real network."""
    return rng.standard_normal(n) * 10.0 ** (-np.arange(n) * 8 // max(n, 1))


def rising(rng: np.random.Generator, n: int) -> np.ndarray:
    """The largest are all at the end: a selection that stops when it is full never gets there."""
    return np.arange(n) / max(n, 1)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    make.__name__: make
    for make in (
        normal, laplace, heavy_tailed, zeros, constant, one_hot, mostly_zero, nearly_all_zero, denormal, huge, ties,
        mixed_scales, rising,
    )
}  # fmt: skip


def gradient(distribution: str, n: int, *seed: int) -> np.ndarray:
    """float32, shape ``(n,)``."""
    return DISTRIBUTIONS[distribution](np.random.default_rng(seed), n).astype(np.float32)


class Digits:
    """A small convolutional network (300,000 parameters) learning scikit-learn's digits on ``workers`` workers."""

    def __init__(self, workers: int, seed: int = 0, rate: float = 0.1) -> None:
        import torch
        from sklearn.datasets import load_digits

        torch.set_num_threads(1)  # of no use to a network this small, and fatal where cores are shared
        self._torch = torch
        digits = load_digits()
        self._images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
        self._labels = torch.tensor(digits.target)
        self._workers = workers
        self._draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = torch.nn.Sequential(
                torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.ReLU(),
                torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(),
                torch.nn.MaxPool2d(2), torch.nn.Flatten(),
                torch.nn.Linear(1024, 256), torch.nn.ReLU(),
                torch.nn.Linear(256, 10),
            )  # fmt: skip
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)

    def gradients(self, batch: int = 32) -> dict[str, list[np.ndarray]]:
        """Every worker's gradients on its own random batch."""
        result: dict[str, list[np.ndarray]] = {name: [] for name, _ in self.model.named_parameters()}
        for _ in range(self._workers):
            chosen = self._torch.randint(len(self._labels), (batch,), generator=self._draw)
            self._optimizer.zero_grad()
            output = self.model(self._images[chosen])
            self._torch.nn.functional.cross_entropy(output, self._labels[chosen]).backward()
            for name, parameter in self.model.named_parameters():
                result[name].append(parameter.grad.numpy().copy())
        return result

    def update(self, means: dict[str, np.ndarray]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.grad = self._torch.from_numpy(means[name])
        self._optimizer.step()

    def loss(self) -> float:
        """On all images."""
        with self._torch.no_grad():
            return float(self._torch.nn.functional.cross_entropy(self.model(self._images), self._labels))
