"""Train on Fashion-MNIST under Horovod, with or without gradient compression.

    horovodrun -np 2 python examples/train_torch.py --compression sidco --ratio 0.01 --record sidco.json

What a training script of your own needs is the two lines marked (1) and (2); the rest is what any has.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch.nn.functional import cross_entropy

import hvd_compress

# isort: split
import checkpoints
import fashion_mnist
import flags
import networks
import progress
import records

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises from 0."""


class Training:
    """One run: model, data, optimizer, record."""

    def __init__(self, chosen: argparse.Namespace, compressor: hvd_compress.Compressor | None) -> None:
        self.chosen = chosen
        self.compressor = compressor
        self.threads = chosen.threads or max(1, len(os.sched_getaffinity(0)) // hvd.local_size())
        torch.set_num_threads(self.threads)
        torch.manual_seed(chosen.seed)
        self.data = fashion_mnist.load(
            chosen.data_dir,
            chosen.data,
            first_on_host=hvd.local_rank() == 0,
            gather=hvd.allgather_object,
        ).limited(chosen.train_limit)
        images = len(self.data.train_images)
        self.epoch_steps = fashion_mnist.steps_per_epoch(images, chosen.batch_size, hvd.size())
        if self.epoch_steps == 0:
            raise fashion_mnist.DataError(
                f"{images} images are not one batch of {chosen.batch_size} for each of {hvd.size()} ranks; "
                "take a smaller --batch-size"
            )
        scaled = torch.from_numpy(self.data.train_images[:10000]).float()
        self.mean, self.std = float(scaled.mean()), float(scaled.std())

        self.model = networks.network(chosen.model, chosen.width)
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
        )
        compression = compressor  # (1) compression = hvd_compress.SIDCo(ratio=0.01), say
        if compression is None:
            compression = hvd.Compression.fp16 if chosen.compression == "fp16" else hvd.Compression.none
        self.optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=self.model.named_parameters(),
            compression=compression,  # (2)
        )
        self.first_epoch = 0
        self.record = records.Record(self.about())
        if chosen.resume:
            # After wrapping: DistributedOptimizer starts without the state of the optimizer that it is given.
            parts = (self.model, self.optimizer, self.record, compressor)
            self.first_epoch = checkpoints.restore(chosen.checkpoint, *parts)
        # In this order: a rank whose optimizer has no state gets one by a step, which weight decay makes a real one.
        hvd.broadcast_optimizer_state(self.optimizer, root_rank=0)
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
        width = 2 if chosen.compression == "fp16" else 4
        self.stopwatch = records.Stopwatch(compressor, width * self.record.about["model"]["parameters"])

    def introduce(self) -> None:
        """Say what is about to be trained, and on what."""
        if self.data.note:
            print(f"NOTE: {self.data.note}. Training on scikit-learn's digits instead: accuracies mean nothing.")
        if hvd.size() == 1 and self.compressor is not None:
            print("NOTE: one rank has nobody to send to; nothing is compressed. Use horovodrun -np 2.")
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} each"
        print(f"{self.chosen.label}: {hvd.size()} ranks, {threads}, {self.data.name}", flush=True)

    def about(self) -> dict[str, Any]:
        """The part of the record that is known before the first step."""
        return {
            "label": self.chosen.label,
            "flags": {key: str(v) if isinstance(v, Path) else v for key, v in vars(self.chosen).items()},
            "compression": self.compressor.to_config() if self.compressor else self.chosen.compression,
            "data": self.data.describe(),
            "model": {
                "name": self.chosen.model,
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            },
            "ranks": hvd.size(),
            "threads": self.threads,
            "machine": records.machine(),
            "versions": records.versions("horovod", "torch", "numpy", "hvd-compress"),
        }

    def run(self) -> None:
        """Train, evaluate after every epoch, save what was asked for."""
        chosen = self.chosen
        last_epoch = min(chosen.epochs, chosen.stop_after or chosen.epochs)
        with progress.Bar(hvd.rank() == 0, chosen.label, self.epoch_steps * chosen.epochs) as bar:
            for epoch in range(self.first_epoch, last_epoch):
                started = time.perf_counter()
                self.train(epoch, bar)
                seconds = time.perf_counter() - started
                self.average_buffers()
                accuracy, loss = self.evaluate()
                self.record.epochs.append(
                    {
                        "epoch": epoch + 1,
                        "test_accuracy": accuracy,
                        "test_loss": loss,
                        "sent_bytes": self.record.sent_bytes,
                        "seconds": round(seconds, 3),
                    }
                )
                bar.say(f"epoch {epoch + 1}/{chosen.epochs}: test accuracy {accuracy:.2%}, {seconds:.1f} s")
                if chosen.checkpoint:
                    parts = (self.model, self.optimizer, self.record, self.compressor)
                    checkpoints.save(chosen.checkpoint, epoch + 1, *parts)
        self.finish(last_epoch == chosen.epochs)

    def train(self, epoch: int, bar: progress.Bar) -> None:
        """One pass over this rank's shard."""
        chosen, watch = self.chosen, self.stopwatch
        self.model.train()
        losses: list[float] = []
        step = epoch * self.epoch_steps
        order = (len(self.data.train_images), chosen.batch_size, chosen.seed, epoch, hvd.rank(), hvd.size())
        for batch in fashion_mnist.batches(*order):
            watch.mark()
            for group in self.optimizer.param_groups:
                group["lr"] = chosen.lr * learning_rate(step, self.epoch_steps * chosen.epochs)
            self.optimizer.zero_grad()
            images, labels = self.tensors(self.data.train_images[batch], self.data.train_labels[batch])
            loss = cross_entropy(self.model(images), labels)
            loss.backward()
            watch.mark()
            self.optimizer.synchronize()
            watch.mark()
            with self.optimizer.skip_synchronize():
                self.optimizer.step()
            watch.mark()
            self.record.add_step(*watch.take())
            step += 1
            losses.append(loss.item())
            bar.advance(f"epoch {epoch + 1}/{chosen.epochs} loss {losses[-1]:.3f}")
            if step % chosen.record_every == 0:
                mean = hvd.allreduce(torch.tensor(losses).mean(), name="loss")
                self.record.add_loss(float(mean))
                losses.clear()

    def tensors(self, images: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch as the network wants it."""
        scaled = torch.from_numpy(images).float().sub_(self.mean).div_(self.std)
        return scaled.unsqueeze(1), torch.from_numpy(labels)

    def average_buffers(self) -> None:
        """Let all ranks have the mean of their running BatchNorm statistics: one model, not one for each rank."""
        for name, buffer in self.model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(hvd.allreduce(buffer, name=f"buffer.{name}"))

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy and mean loss on the test set, each rank taking its share."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        images, labels = (
            self.data.test_images[hvd.rank() :: hvd.size()],
            self.data.test_labels[hvd.rank() :: hvd.size()],
        )
        for start in range(0, len(images), 500):
            x, y = self.tensors(images[start : start + 500], labels[start : start + 500])
            logits = self.model(x)
            sums[0] += (logits.argmax(1) == y).sum()
            sums[1] += cross_entropy(logits, y, reduction="sum")
        sums = hvd.allreduce(sums, name="evaluation", op=hvd.Sum) / len(self.data.test_images)
        return float(sums[0]), float(sums[1])

    def finish(self, complete: bool) -> None:
        """Check that all ranks ended with the same weights, and write the record."""
        weights = weights_hash(self.model)
        if set(hvd.allgather_object(weights)) != {weights}:
            raise RuntimeError("the ranks ended with different weights")
        self.record.weights, self.record.complete = weights, complete
        self.record.stats = self.compressor.stats()["total"] if self.compressor else None
        if self.chosen.record and hvd.rank() == 0:
            self.record.write(self.chosen.record)


def learning_rate(step: int, steps: int) -> float:
    """Linear rise over the first steps, then half a cosine down to 0; a fraction of the peak."""
    rise = max(1, int(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def weights_hash(model: torch.nn.Module) -> str:
    """Of parameters and buffers, bit by bit."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def main() -> None:
    """Parse, train, and turn what the user can put right into one line."""
    chosen, compressor = flags.parse(__doc__.splitlines()[0])
    hvd.init()
    try:
        training = Training(chosen, compressor)
        if hvd.rank() == 0:
            training.introduce()
        training.run()
    except (fashion_mnist.DataError, checkpoints.CheckpointError) as error:  # raised on every rank alike
        if hvd.rank() == 0:
            print(f"train_torch: error: {error}", file=sys.stderr, flush=True)
        hvd.allgather_object("said")  # mpirun ends all ranks when the first one leaves
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
