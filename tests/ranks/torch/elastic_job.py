"""The program of an elastic job under PyTorch; see ``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

import hvd_compress
from tests.ranks.elastic_plan import Plan, kill
from tests.ranks.torch.training import digest, gather, network, optimizer


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    plan = Plan.of(sys.argv, hvd, gather)
    compression = plan.compression()
    exact = isinstance(compression, hvd_compress.Dense)
    model = network()
    opt = optimizer(model, compression)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def check_ledger(before: Any, after: Any, mine: Any) -> None:
        """What came, from the gradients and the memories, is what went, to the means and the memories."""
        given = {
            name: hvd.allreduce(own, op=hvd.Sum, name=f"given {name}") for name, own in zip(names, mine, strict=True)
        }
        place = 0
        for name in sorted(names):
            parameter = model.get_parameter(name)
            if parameter.ndim > 1 and parameter.numel() >= compression.min_numel:
                part = slice(place, place := place + parameter.numel())
                came = given[name].numpy().reshape(-1) + (before[part] if len(before) else 0)
                went = hvd.size() * parameter.grad.numpy().reshape(-1) + after[part]
                np.testing.assert_allclose(went, came, rtol=0, atol=1e-4 * np.abs(came).max())
        assert place == len(after) > 0

    def train(state: Any) -> None:
        while state.step < plan.steps:
            what = plan.before(state, compression)
            inputs, labels = map(torch.from_numpy, plan.batch(state.step))
            opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            mine = torch.autograd.grad(loss, parameters, retain_graph=True)
            if what == "kill in backward":
                parameters[2].register_hook(lambda _: kill())
            held = plan.held(compression)
            loss.backward()
            opt.synchronize()
            if compression.error_feedback and not isinstance(compression, hvd_compress.DGC):  # momentum is no gradient
                check_ledger(held, plan.held(compression), mine)
            if exact:
                for number, (parameter, own) in enumerate(zip(parameters, mine, strict=True)):
                    mean = hvd.allreduce(own, name=f"oracle{number}")
                    torch.testing.assert_close(parameter.grad, mean, rtol=1e-6, atol=1e-7)
            with opt.skip_synchronize():
                opt.step()
            plan.check(digest(model), compression)
            state.step += 1
            plan.note(state.step, loss.item())
            state.commit()

    state = hvd.elastic.TorchState(model=model, optimizer=opt, step=0, **plan.kept(compression))
    hvd.elastic.run(train)(state)


if __name__ == "__main__":
    main()
