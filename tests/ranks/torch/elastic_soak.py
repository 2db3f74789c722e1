"""The program of an elastic job whose third worker comes and goes many times: FOLDER CONFIGURATION STEPS CHANGES.

``FOLDER/hosts`` is what the discovery script shows, ``FOLDER/hosts.2`` and ``hosts.3`` what it shows with so many
workers. CONFIGURATION is the compressor's, in JSON; null: none. Before every change each worker writes what it holds
to ``FOLDER/PID.used``, a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch

import hvd_compress
from tests.ranks.elastic_plan import LIMIT
from tests.ranks.torch.soak import used
from tests.ranks.torch.training import batches, gather, network, optimizer

COMMIT = 10
"""Steps between commits."""


def main() -> None:
    hvd.init()
    torch.set_num_threads(1)
    folder, configuration, steps, changes = Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:])
    compression = hvd.Compression.none if configuration is None else hvd_compress.from_config(configuration)
    kept = {} if configuration is None else {"compression": compression}
    model = network()
    opt = optimizer(model, compression, lr=0.01)
    given = list(batches(16))

    def change(state: Any, number: int) -> None:
        mark = folder / f"{number}.done"
        if any(gather(mark.exists())):
            return
        with (folder / f"{os.getpid()}.used").open("a") as file:
            file.write(json.dumps({"change": number, **used()}) + "\n")
        if hvd.rank() == 0:
            mark.touch()
            (folder / "hosts").write_text((folder / f"hosts.{5 - hvd.size()}").read_text())
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            time.sleep(0.1)
            state.check_host_updates()  # raises what hvd.elastic.run waits for
        raise AssertionError("Horovod has not noticed that the hosts have changed")

    def train(state: Any) -> None:
        while state.step < steps:
            number, rest = divmod(state.step * changes, steps)
            if number and rest < changes:
                change(state, number)
            inputs, labels = given[state.step % len(given)]
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
            state.step += 1
            if state.step % COMMIT == 0:
                state.commit()

    hvd.elastic.run(train)(hvd.elastic.TorchState(model=model, optimizer=opt, step=0, **kept))


if __name__ == "__main__":
    main()
