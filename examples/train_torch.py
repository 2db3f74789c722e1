"""Train on Fashion-MNIST under Horovod, with or without gradient compression.

    horovodrun -np 2 python examples/train_torch.py --compression sidco --ratio 0.01 --record sidco.json

What a training script of your own needs is the line marked (1), with a compressor; the rest is what any has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch.nn.functional import cross_entropy

import hvd_compress

# isort: split
import job
import networks


class Training(job.Job):
    """One run with PyTorch."""

    hvd = hvd
    packages = ("torch",)

    def __init__(self, chosen: argparse.Namespace, compressor: hvd_compress.Compressor | None) -> None:
        super().__init__(chosen, compressor)
        self.model = networks.network(chosen.model, chosen.width)
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.optimizer_decay
        )
        self.optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=self.model.named_parameters(),
            compression=self.compression,  # (1) compression=hvd_compress.SIDCo(ratio=0.01), say
        )
        # After wrapping: DistributedOptimizer starts without the state of the optimizer that it is given.
        self.prepare(sum(parameter.numel() for parameter in self.model.parameters()))
        # In this order: a rank whose optimizer has no state gets one by a step, which weight decay makes a real one.
        hvd.broadcast_optimizer_state(self.optimizer, root_rank=0)
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)

    def set_up(self) -> None:
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.chosen.seed)

    def train(self) -> None:
        for epoch in range(self.first_epoch, self.last_epoch):
            self.begin_epoch(epoch)
            self.model.train()
            for number, (images, labels) in enumerate(self.batches(epoch)):
                self.watch.mark()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate(epoch * self.epoch_steps + number)
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(torch.from_numpy(images).unsqueeze(1)), torch.from_numpy(labels))
                loss.backward()
                self.watch.mark()
                self.optimizer.synchronize()
                self.watch.mark()
                with self.optimizer.skip_synchronize():
                    self.optimizer.step()
                self.watch.mark()
                self.watch.end_step(loss.item())
            self.end_epoch(epoch)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        for name, buffer in self.model.named_buffers():  # one model, not one for each rank's BatchNorm
            if buffer.is_floating_point():
                buffer.copy_(hvd.allreduce(buffer, name=f"buffer.{name}"))
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for images, labels in self.test_batches():
            logits, y = self.model(torch.from_numpy(images).unsqueeze(1)), torch.from_numpy(labels)
            sums[0] += (logits.argmax(1) == y).sum()
            sums[1] += cross_entropy(logits, y, reduction="sum")
        sums = hvd.allreduce(sums, name="evaluation", op=hvd.Sum) / len(self.data.test_images)
        return float(sums[0]), float(sums[1])

    def mean_of(self, loss: float) -> float:
        return float(hvd.allreduce(torch.tensor(loss), name="loss"))

    def weights(self) -> Iterable[Any]:
        return (tensor.detach().numpy() for tensor in self.model.state_dict().values())

    def save(self, path: Path, about: dict[str, Any]) -> None:
        torch.save({"about": about, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, path)

    def load(self, path: Path) -> tuple[dict[str, Any], Callable[[], None]]:
        state = torch.load(path, weights_only=True)

        def take() -> None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])

        return state["about"], take

    def save_compressor(self, path: Path) -> None:
        assert self.compressor is not None
        torch.save(self.compressor.state_dict(), path)

    def load_compressor(self, path: Path) -> None:
        assert self.compressor is not None
        self.compressor.load_state_dict(torch.load(path, weights_only=True), source=str(path))


if __name__ == "__main__":
    job.main(Training, __doc__.splitlines()[0])
