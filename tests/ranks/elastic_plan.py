"""What happens to the workers of an elastic job, and what they write down, whatever the framework.

The program of a job takes FOLDER CONFIGURATION PLAN. ``FOLDER/hosts`` is what the discovery script shows; CONFIGURATION
is the compressor's, in JSON; PLAN is JSON too, from steps to what happens before them, or in them:
``{"3": ["hosts", "localhost:1\\n"], "6": ["kill", 1], "9": ["kill in backward", 0]}``, where numbers are ranks. Every
worker writes what it saw of each step to ``FOLDER/PID.steps``.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hvd_compress
from hvd_compress.state_format import MEAN_MOMENTUM, checksum

LIMIT = 120
"""Seconds in which Horovod has to notice that hosts have changed."""


Held = dict[tuple[str, str], np.ndarray]
"""What is held back, by parameter and array of the memory."""

RATE = 0.1
"""The learning rate."""


def batch(step: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a worker's batch of a learnable problem: inputs and labels."""
    rule = np.random.default_rng(5).standard_normal((64, 2)).astype(np.float32)
    inputs = np.random.default_rng(1000 * step + rank).standard_normal((32, 64)).astype(np.float32)
    return inputs, (inputs @ rule).argmax(1)


def held_by(compression: hvd_compress.Compressor) -> Held:
    """Return what this rank holds back."""
    memory = compression.state_dict()["memory"]
    keys = [(name, key) for name in memory for key in memory[name] if key != MEAN_MOMENTUM]
    return {(name, key): np.array(memory[name][key]) for name, key in keys}


def total(ranks: list[Held]) -> Held:
    """Return the sum of what all ranks hold back, in float64. A new worker has no memory yet if its compressor is not
    in the elastic state."""
    held: Held = {}
    for one in ranks:
        for of, array in one.items():
            held[of] = held.get(of, 0) + array.astype(np.float64)
    return held


def kill() -> None:
    """End this worker as the kernel does when there is no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Plan:
    """One worker's view of the job."""

    folder: Path
    configuration: dict[str, Any]
    events: dict[str, list[Any]]
    hvd: Any
    gather: Callable[[Any], list[Any]]
    steps: int
    in_state: bool
    keras: bool

    @classmethod
    def of(cls, arguments: list[str], hvd: Any, gather: Callable[[Any], list[Any]]) -> Plan:
        """Read the command line."""
        configuration, events = json.loads(arguments[2]), json.loads(arguments[3])
        steps, in_state, keras = events.pop("steps"), events.pop("in_state", True), events.pop("keras", False)
        return cls(Path(arguments[1]), configuration, events, hvd, gather, steps, in_state, keras)

    def compression(self) -> hvd_compress.Compressor:
        """Return a new compressor."""
        return hvd_compress.from_config({"bucket_mb": 0.05, **self.configuration})

    def kept(self, compression: hvd_compress.Compressor) -> dict[str, Any]:
        """Return what the elastic state is to keep besides model and optimizer."""
        return {"compression": compression} if self.in_state else {}

    def before(self, state: Any, compression: hvd_compress.Compressor) -> str:
        """Do what is planned before a step, once; return what this worker is to do in it. What was held back before
        hosts change is still so when they have."""
        what, argument = self.events.get(str(state.step), ("", None))
        mark, kept = self.folder / f"{state.step}.done", self.folder / f"{state.step}.held"
        if not what:
            return ""
        if any(self.gather(mark.exists())):
            if what == "hosts" and self.in_state:
                self.check_held(pickle.loads(kept.read_bytes()), compression)
            return ""
        if what == "hosts":
            held = self.held(compression)
            if self.hvd.rank() == 0:
                kept.write_bytes(pickle.dumps(held))
                (self.folder / "hosts").write_text(argument)
                mark.touch()
            deadline = time.monotonic() + LIMIT
            while time.monotonic() < deadline:
                time.sleep(0.1)
                state.check_host_updates()  # raises what hvd.elastic.run waits for
            raise AssertionError("Horovod has not noticed that the hosts have changed")
        if self.hvd.rank() != argument:
            return ""
        mark.touch()
        if what == "kill":
            kill()
        return str(what)

    def held(self, compression: hvd_compress.Compressor) -> Held:
        """Return the sum over the ranks of what they hold back."""
        return total(self.gather(held_by(compression)))

    def check_held(self, before: Held, compression: hvd_compress.Compressor) -> None:
        """Raise unless as much is held back as before, but for the rounding of float32."""
        now = self.held(compression)
        assert any(array.any() for array in before.values()) == compression.error_feedback
        assert now.keys() == before.keys()
        for of, array in before.items():
            np.testing.assert_allclose(now[of], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=str(of))

    def check(self, digest: str, compression: hvd_compress.Compressor) -> None:
        """Raise unless replicas are the same, and compressors in the same step, with the same momenta of means."""
        state = compression.state_dict()
        momenta = [state["memory"][name].get(MEAN_MOMENTUM) for name in sorted(state["memory"])]
        told = self.gather((digest, state["step"], checksum([m for m in momenta if m is not None])))
        assert len(set(told)) == 1, f"replicas, steps or momenta differ: {told}"

    def begin(self, weights: list[np.ndarray]) -> None:
        """Write down what a job begins with: weights, (inputs, outputs), and biases, layer after layer."""
        if self.hvd.rank() == 0 and not (self.folder / "weights.npz").exists():
            np.savez(self.folder / "weights.npz", *weights)

    def note(self, step: int, loss: float, compression: hvd_compress.Compressor) -> None:
        """Write a step down, and LGC's phase."""
        phase = compression.stats()["lgc"]["phase"] if isinstance(compression, hvd_compress.LGC) else ""
        with (self.folder / f"{os.getpid()}.steps").open("a") as file:
            file.write(json.dumps([step, self.hvd.size(), self.hvd.rank(), loss, phase]) + "\n")
