"""The program of an elastic job under PyTorch; see ``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from tests.ranks.elastic_oracle import Oracle
from tests.ranks.elastic_plan import RATE, Plan, batch, kill
from tests.ranks.torch.training import digest, gather, network, optimizer


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    plan = Plan.of(sys.argv, hvd, gather)
    compression = plan.compression()
    model = network()
    opt = optimizer(model, compression, lr=RATE)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def average(vector: np.ndarray) -> np.ndarray:
        return hvd.allreduce(torch.from_numpy(vector), name="oracle").numpy()

    oracle = Oracle(plan, compression, average)

    def train(state: Any) -> None:
        plan.begin([parameter.detach().numpy().T for parameter in parameters])
        while state.step < plan.steps:
            what = plan.before(state, compression)
            inputs, labels = map(torch.from_numpy, batch(state.step, hvd.rank()))
            opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            mine = torch.autograd.grad(loss, parameters, retain_graph=True)
            if what == "kill in backward":
                parameters[2].register_hook(lambda _: kill())
            oracle.before()
            loss.backward()
            opt.synchronize()
            own = {name: gradient.numpy() for name, gradient in zip(names, mine, strict=True)}
            oracle.check(own, {name: parameter.grad.numpy() for name, parameter in zip(names, parameters, strict=True)})
            with opt.skip_synchronize():
                opt.step()
            plan.check(digest(model), compression)
            state.step += 1
            plan.note(state.step, loss.item(), compression)
            state.commit()

    state = hvd.elastic.TorchState(model=model, optimizer=opt, step=0, **plan.kept(compression))
    hvd.elastic.run(train)(state)


if __name__ == "__main__":
    main()
