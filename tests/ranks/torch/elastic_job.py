"""The program of an elastic job under PyTorch; see ``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from typing import Any

import horovod.torch as hvd
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
    parameters = list(model.parameters())

    def train(state: Any) -> None:
        while state.step < plan.steps:
            what = plan.before(state)
            inputs, labels = map(torch.from_numpy, plan.batch(state.step))
            opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            mine = torch.autograd.grad(loss, parameters, retain_graph=True)
            if what == "kill in backward":
                parameters[2].register_hook(lambda _: kill())
            loss.backward()
            opt.synchronize()
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
