"""Train on handwritten digits in an elastic job: workers may come, go and die.

    horovodrun --gloo -np 2 --min-np 1 --max-np 4 --host-discovery-script ./discover_hosts.sh \\
        python examples/train_elastic.py --framework torch --compression sidco --ratio 0.05

To try it out on a single machine, add ``--network-interface lo``, and let ./discover_hosts.sh print ``localhost:2``.

What an elastic training script of your own needs besides Horovod's ``hvd.elastic.run`` is at the lines marked (1): one
compressor, made once, which the elastic state keeps as it keeps model and optimizer. See docs/elastic.md.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np

import hvd_compress

# isort: split
import fashion_mnist


def parse() -> argparse.Namespace:
    """Return what was chosen on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=("torch", "tensorflow"), default="torch")
    parser.add_argument("--compression", default="sidco", help="a compressor's name (default: %(default)s)")
    parser.add_argument("--ratio", type=float, help="the compressor's ratio, if it has one")
    parser.add_argument("--steps", type=int, default=300, help="steps, whatever the number of workers")
    parser.add_argument("--batch-size", type=int, default=32, help="images a worker takes in a step")
    parser.add_argument("--commit-every", type=int, default=10, help="steps that are repeated at the most")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate of two workers")
    return parser.parse_args()


class Batches:
    """The images that this worker takes in a step: others on every rank, as many as there are now."""

    def __init__(self, hvd: Any, size: int) -> None:
        self._hvd = hvd
        self._size = size
        data = fashion_mnist.digits()
        self._images = (data.train_images.reshape(len(data.train_images), -1) / np.float32(255)).astype(np.float32)
        self._labels = data.train_labels

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng(step).permutation(len(self._images))
        chosen = order[self._hvd.rank() :: self._hvd.size()][: self._size]
        return self._images[chosen], self._labels[chosen]


def run_torch(chosen: argparse.Namespace, compression: hvd_compress.Compressor) -> None:
    """Train with PyTorch."""
    import horovod.torch as hvd
    import torch

    hvd.init()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=chosen.lr),
        named_parameters=model.named_parameters(),
        compression=compression,
    )
    batches = Batches(hvd, chosen.batch_size)

    @hvd.elastic.run
    def train(state: Any) -> None:
        while state.step < chosen.steps:
            images, labels = map(torch.from_numpy, batches[state.step])
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            state.step += 1
            after_step(state, hvd, chosen, loss.item())

    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, compression=compression, step=0)  # (1)

    def adapt() -> None:
        for group in optimizer.param_groups:
            group["lr"] = chosen.lr * hvd.size() / 2

    state.register_reset_callbacks([adapt])
    train(state)


def run_tensorflow(chosen: argparse.Namespace, compression: hvd_compress.Compressor) -> None:
    """Train with TensorFlow."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential([tf.keras.Input((784,)), tf.keras.layers.Dense(128, "relu"), tf.keras.layers.Dense(10)])
    optimizer = tf.keras.optimizers.SGD(chosen.lr)
    optimizer.build(model.trainable_variables)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    batches = Batches(hvd, chosen.batch_size)

    @tf.function
    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @hvd.elastic.run
    def train(state: Any) -> None:
        while state.step < chosen.steps:
            images, labels = map(tf.constant, batches[state.step])
            loss = step(images, labels)
            state.step += 1
            after_step(state, hvd, chosen, float(loss))

    state = hvd.elastic.TensorFlowKerasState(model, optimizer, compression=compression, step=0)  # (1)

    def adapt() -> None:
        optimizer.learning_rate.assign(chosen.lr * hvd.size() / 2)

    state.register_reset_callbacks([adapt])
    train(state)


def after_step(state: Any, hvd: Any, chosen: argparse.Namespace, loss: float) -> None:
    """Commit now and then, which is also when Horovod tells of workers that come and go; say how it goes."""
    if state.step % 50 == 0 and hvd.rank() == 0:
        print(f"step {state.step}: loss {loss:.3f}, {hvd.size()} workers", flush=True)
    if state.step % chosen.commit_every == 0:
        state.commit()


def main() -> None:
    """Train."""
    chosen = parse()
    configuration = {"name": chosen.compression} | ({} if chosen.ratio is None else {"ratio": chosen.ratio})
    compression = hvd_compress.from_config(configuration)  # (1)
    {"torch": run_torch, "tensorflow": run_tensorflow}[chosen.framework](chosen, compression)


if __name__ == "__main__":
    main()
