"""Train under PyTorch and write each rank's gradients, payloads and means to ``FOLDER/torch.N.npz``."""

from __future__ import annotations

from pathlib import Path

import horovod.torch as hvd
import torch

from hvd_compress.drivers.torch.transport import HorovodTransport
from tests.ranks.payloads import STEPS, cases, write
from tests.ranks.recording import recorded
from tests.ranks.torch.training import batches, network


def write_all(folder: str) -> None:
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
    write(Path(folder) / f"torch.{hvd.rank()}.npz", gradients, sent, means)
