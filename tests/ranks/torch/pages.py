"""Run the Python blocks of pages about PyTorch, on every rank."""

from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks import pages


def granted() -> dict[str, Any]:
    """A model of one compressed layer, and an optimizer that Horovod has not seen yet, under both names."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"hvd": hvd, "hvd_compress": hvd_compress, "torch": torch, "model": model}
    # for pages that show what comes after the wrapping
    compression = hvd_compress.SIDCo(0.01)
    return {**names, "opt": optimizer, "optimizer": optimizer, "compression": compression, "steps_per_epoch": 10}


def step(names: dict[str, Any]) -> None:
    """With whichever optimizer the page has wrapped: the replicas must stay the same."""
    for name in ("opt", "optimizer"):
        if hasattr(names[name], "skip_synchronize"):
            model, optimizer = names["model"], names[name]
            torch.manual_seed(hvd.rank())
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.randn(8, 64)), torch.arange(8)).backward()
            optimizer.step()
            weights = [parameter.detach().clone() for parameter in model.parameters()]
            for own, first in zip(weights, hvd.broadcast_object(weights, 0), strict=True):
                assert torch.equal(own, first)


def run_blocks(folder: str) -> None:
    """Run those of ``FOLDER/blocks.json``."""
    pages.run(Path(folder), hvd.rank(), granted, step)
