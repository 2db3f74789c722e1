"""The trainer of LGC's autoencoder, whoever feeds it.

A sample is what the workers sent in one step: float32 ``(workers, length)``, divided by a scale, in the order of their
common indices; the worker whose indices they are comes first.
"""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save as write_tensors

from hvd_compress.kernels import Float32
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.autoencoder import (
    Autoencoder,
    from_bytes,
    innovations_of,
    load_weights,
    metadata,
    tensors_of,
    to_bytes,
)
from hvd_compress.lgc.neighbours import neighbour_means
from hvd_compress.lgc.training import Outcome
from hvd_compress.validation import require_int, require_number

BATCHES_PER_SAMPLE = 1
"""Batches for each sample: at once where a worker trains itself, and in the end at least where a process does."""
REPLAY = 256
"""Samples to train on that are kept: the newest."""
REPLAY_BYTES = 1 << 27
"""And no more than fit in here."""
HELD_OUT = 64
"""Samples to validate on that are kept."""
EVERY = 8
"""One sample in so many is held out."""
ENOUGH = 2
"""Held-out samples without which nothing is known about the autoencoder."""
BATCH = 8
"""Samples of a batch, if they are short."""
WINDOW = 1024
"""Entries of a long vector that a batch has of it, and validation too; convolutions are the same everywhere."""
BATCH_ENTRIES = 8192
"""Entries of a batch of more than one sample, all workers together: what a step of training costs, on the whole."""
VALIDATE = 20
"""Batches between two looks at the held-out samples."""
PATIENCE = 15
"""Looks without an improvement of a hundredth, after which training stops."""


class HeldOut(NamedTuple):
    """A sample to validate with."""

    vectors: torch.Tensor
    """A window of it."""
    dropped: float
    """The squared error of float16 top-k, at the bytes of the learned code, on the whole of the workers' mean."""
    total: float
    """The sum of squares of that."""


class Trainer:
    """Adam on a replay buffer, with a part held out; stops early, and keeps the best weights it has had.

    Args:
        architecture: of the autoencoder.
        seed: of its first weights and of the batches; the same samples in the same order give the same weights.
        similarity: gather variant: weight of the loss that makes the workers' codes alike.
        rate: of Adam.
    """

    def __init__(self, architecture: Architecture, seed: int = 0, similarity: float = 0.1, rate: float = 1e-3) -> None:
        self.architecture = architecture
        self.model = Autoencoder(architecture, seed)
        self.batches = 0
        self.samples = 0
        self.refused = 0
        self.best = float("inf")
        self._best_weights = to_bytes(self.model)
        self._since = 0
        self._seed = seed
        self._similarity = similarity
        self._adam = torch.optim.Adam(self.model.parameters(), lr=rate)
        self._neighbours = neighbour_means(architecture)
        self._replay: deque[torch.Tensor] = deque(maxlen=REPLAY)
        self._held: deque[HeldOut] = deque(maxlen=HELD_OUT)

    def add(self, vectors: Float32, entries: int) -> bool:
        """Take a sample, float32 ``(workers, length)``, and how many entries of such a vector top-k could send, as
        float16, for the bytes of the learned code. Return whether it was taken: one that is not finite, or nothing but
        zeros, is not."""
        if not np.isfinite(vectors).all() or not vectors.any():
            self.refused += 1
            return False
        sample = torch.from_numpy(np.array(vectors, np.float32))
        self.samples += 1
        if self.samples % EVERY == 0:
            window = self._window(sample.shape[1], np.random.default_rng((self._seed, self.samples, 1)))
            self._held.append(HeldOut(sample[:, window].clone(), *_top_k(sample.mean(0), entries)))
            return True
        self._replay.append(sample)
        while len(self._replay) > 1 and sum(one.nbytes for one in self._replay) > REPLAY_BYTES:
            self._replay.popleft()
        return True

    @property
    def ready(self) -> bool:
        """Whether there is something to train on, and something to validate with."""
        return len(self._replay) > 0 and len(self._held) >= ENOUGH

    @property
    def stalled(self) -> bool:
        """Whether more training would be of no use."""
        return self._since >= PATIENCE

    def train(self, batches: int) -> None:
        """Train on so many batches, if there is anything to train on; validate now and then."""
        for _ in range(batches if self.ready else 0):
            self.model.train()
            vectors = self._batch()
            loss = self._loss(vectors)
            self._adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._adam.step()
            self.batches += 1
            if self.batches % VALIDATE == 0:
                self._look()

    def validate(self) -> tuple[float, float]:
        """Return the relative squared errors of the autoencoder and of float16 top-k, on the held-out samples."""
        return self._error(self.model), self._top_k_error()

    def _error(self, model: Autoencoder) -> float:
        wrong = seen = 0.0
        model.eval()
        with torch.inference_mode():
            for vectors, _, _ in self._held:
                mean = vectors.mean(0)
                wrong += float((_reconstruct(model, vectors) - mean).square().sum())
                seen += float(mean.square().sum())
        return wrong / seen if seen else float("inf")

    def _top_k_error(self) -> float:
        total = sum(held.total for held in self._held)
        return sum(held.dropped for held in self._held) / total if total else float("inf")

    def finish(self) -> Outcome:
        """Return the best weights, and what they are worth: those of the means of neighbours, if they are as good."""
        if self.ready:
            self._look()
        weights, error, untrained = self._best_weights, self.best, float("inf")
        if self.ready and self._neighbours is not None:
            untrained = self._error(self._neighbours)
            if untrained <= error:
                weights, error = to_bytes(self._neighbours), untrained
        return Outcome(weights, error, self._top_k_error(), self.batches, self.samples, untrained)

    def state(self) -> bytes:
        """Return everything, so that ``load_state`` goes on as if nothing had been."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in self._adam.state_dict()["state"].items():
            tensors.update({f"adam.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()})
        tensors["best"] = torch.frombuffer(bytearray(self._best_weights), dtype=torch.uint8)
        for name, samples in (("replay", self._replay), ("held", [held.vectors for held in self._held])):
            tensors.update({f"{name}.{index}": sample for index, sample in enumerate(samples)})
        about = {
            "architecture": self.architecture.to_config(),
            "numbers": [self.batches, self.samples, self.refused, self._since],
            "best": self.best if self.best < float("inf") else None,
            "replay": len(self._replay),
            "top_k": [held[1:] for held in self._held],
        }
        return write_tensors(
            {name: t.contiguous().clone() for name, t in tensors.items()}, {"about": json.dumps(about)}
        )

    def load_state(self, content: bytes) -> None:
        """Take over what ``state`` returned. Raise ValueError if it is of another architecture, or not a state."""
        about, tensors = metadata(content, "about"), tensors_of(content)
        try:
            self._take_over(about, tensors)
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ValueError(f"the trainer's state is damaged: {error!r:.200}") from error

    def _take_over(self, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        found = Architecture.from_config(about["architecture"])
        if found != self.architecture:
            raise ValueError(f"the trainer's state is for another autoencoder: {found.difference(self.architecture)}")
        numbers, best = about["numbers"], about["best"]
        for name, number in zip(("batches", "samples", "refused", "since"), numbers, strict=True):
            require_int(f"the trainer's {name}", number, 0)
        require_int("the trainer's number of samples to train on", about["replay"], 0, REPLAY)
        if not isinstance(about["top_k"], list) or len(about["top_k"]) > HELD_OUT:
            raise ValueError(f"the trainer's errors of top-k are {about['top_k']!r:.200}")
        if best is not None:
            require_number("the trainer's best error", best, "finite and at least 0", lambda x: 0 <= x < math.inf)
        load_weights(self.model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        adam, parameters = self._adam.state_dict(), list(self.model.parameters())
        for key, tensor in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                if tensor.shape != ({"step": torch.Size()}.get(name, parameters[int(index)].shape)):
                    raise ValueError(
                        f"the trainer's {key} has shape {tuple(tensor.shape)}, which is not its parameter's"
                    )
                adam["state"].setdefault(int(index), {})[name] = _finite(key, tensor)
        if any(moments.keys() != {"step", "exp_avg", "exp_avg_sq"} for moments in adam["state"].values()):
            raise ValueError("the trainer's moments of Adam are not complete")
        self._adam.load_state_dict(adam)
        self.batches, self.samples, self.refused, self._since = numbers
        self.best = float("inf") if best is None else best
        self._best_weights = tensors["best"].numpy().tobytes()
        from_bytes(self._best_weights, self.architecture, "the trainer's best autoencoder")
        self._replay.clear()
        self._replay.extend(_sample(f"replay.{index}", tensors) for index in range(about["replay"]))
        self._held.clear()
        for place, (dropped, total) in enumerate(about["top_k"]):
            self._held.append(HeldOut(_sample(f"held.{place}", tensors), float(dropped), float(total)))

    def _batch(self) -> torch.Tensor:
        """Return samples of one length, float32 ``(samples, workers, entries)``; which ones depends on the seed and on
        the number of the batch alone."""
        rng = np.random.default_rng((self._seed, self.batches))
        shape = self._replay[int(rng.integers(len(self._replay)))].shape
        alike = [vectors for vectors in self._replay if vectors.shape == shape]
        size = max(1, min(BATCH, BATCH_ENTRIES // (shape[0] * min(shape[1], WINDOW))))
        window = self._window(shape[1], rng)
        return torch.stack([alike[int(i)][:, window] for i in rng.integers(len(alike), size=size)])

    def _window(self, length: int, rng: np.random.Generator) -> slice:
        """Return a part of a vector; all of one that is not long."""
        if length <= WINDOW:
            return slice(length)
        stride = self.architecture.stride
        start = int(rng.integers((length - WINDOW) // stride + 1)) * stride
        return slice(start, start + WINDOW)

    def _loss(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch.

        All-reduce: the error of the decoded mean code, and that of every worker's own, which is what its memory lacks
        (the paper has the first alone: codes that say nothing of their worker make memories grow). Gather: that of
        every worker's vector, decoded from one worker's code and the worker's innovation, and how far the codes are
        apart.
        """
        samples, workers, length = vectors.shape
        flat = vectors.reshape(samples * workers, length)
        codes = self.model.encode(flat).reshape(samples, workers, self.architecture.channels, -1)
        if self.architecture.variant == "allreduce":
            decoded = self.model.decode(codes.mean(1), length)
            own = self.model.decode(codes.flatten(0, 1), length)
            loss = torch.nn.functional.mse_loss
            return loss(decoded, vectors.mean(1)) + loss(own, flat)
        common = codes[:, 0]  # as in phase 3, it is the worker's whose indices these are
        sent = innovations_of(flat, self.architecture.innovations(length))
        decoded = self.model.decode(common.repeat_interleave(workers, 0), length, sent)
        apart = (codes - codes.mean(1, keepdim=True)).square().mean()
        return torch.nn.functional.mse_loss(decoded, flat) + self._similarity * apart

    def _look(self) -> None:
        error = self._error(self.model)
        self._since = 0 if error < 0.99 * self.best else self._since + 1
        if error < self.best:
            self.best = error
            self._best_weights = to_bytes(self.model)


def _reconstruct(model: Autoencoder, vectors: torch.Tensor) -> torch.Tensor:
    """Return what the workers would make of one sample: float32 ``(length,)``. The codes travel as float16."""
    workers, length = vectors.shape
    codes = model.encode(vectors).to(torch.float16).to(torch.float32)
    if model.architecture.variant == "allreduce":
        return model.decode(codes.mean(0, keepdim=True), length)[0]
    sent = innovations_of(vectors, model.architecture.innovations(length))
    return model.decode(codes[:1].expand(workers, -1, -1), length, sent).mean(0)


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor. Raise ValueError unless it is float32 and finite."""
    if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
        raise ValueError(f"the trainer's {name} is not of finite numbers of float32")
    return tensor


def _sample(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sample of this name. Raise ValueError if it is none."""
    if tensors[name].ndim != 2:
        raise ValueError(f"the trainer's {name} has shape {tuple(tensors[name].shape)}, which is no sample's")
    return _finite(name, tensors[name])


def _top_k(mean: torch.Tensor, entries: int) -> tuple[float, float]:
    """Return the squared error of the ``entries`` largest as float16, and the sum of squares."""
    kept = mean.abs().topk(min(entries, len(mean))).indices
    half = torch.zeros_like(mean)
    half[kept] = mean[kept].to(torch.float16).to(torch.float32)
    return float((half - mean).square().sum()), float(mean.square().sum())
