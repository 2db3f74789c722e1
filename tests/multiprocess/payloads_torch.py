"""Trains under PyTorch and writes each rank's gradients, payloads and means to ``DIR/torch.N.npz``."""

from __future__ import annotations

import sys
from pathlib import Path

import horovod.torch as hvd
import torch

from hvd_compress.drivers.torch.transport import HorovodTransport
from tests.multiprocess.payloads import STEPS, cases, write
from tests.multiprocess.recording import recorded
from tests.multiprocess.training import batches, network


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    gradients, sent, means = {}, {}, {}
    for case, compression in cases().items():
        model = network()
        weights = [p for p in reversed(list(model.parameters())) if p.dim() > 1 and p.numel() >= 1024]  # as they arrive
        place = {id(p): f"bucket{number}" for number, p in enumerate(weights)}
        opt = hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05),
            named_parameters=[(place.get(id(p), name), p) for name, p in model.named_parameters()],
            compression=compression,
        )
        with recorded(HorovodTransport, keep=lambda array: array.copy()) as sent[case]:
            for t, (inputs, labels) in enumerate(batches(STEPS)):
                opt.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), labels).backward()
                for p in weights:
                    gradients[f"{case}/gradient/{place[id(p)]}/{t}"] = p.grad.numpy().copy()
                opt.synchronize()
                for p in weights:
                    means[f"{case}/mean/{place[id(p)]}/{t}"] = p.grad.numpy().copy()
                with opt.skip_synchronize():
                    opt.step()
    write(Path(sys.argv[1]) / f"torch.{hvd.rank()}.npz", gradients, sent, means)


if __name__ == "__main__":
    main()
