"""What benchmarks/end_to_end.py compares: optimizers on the same weights, and their steps."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import horovod.torch as hvd
import torch
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

from hvd_compress.advisor.exchange_timing import fastest
from hvd_compress.compressor import Compressor

# isort: split
sys.path.insert(0, str(Path(__file__).resolve().parent))
import quiet
import workloads

ALONE, NONE, FP16, DDP, POWER, AUTO = (
    "no communication",
    "Horovod uncompressed",
    "Horovod fp16",
    "DDP uncompressed",
    "DDP PowerSGD rank 1",
    "Auto",
)
ONE_BUCKET_MB = 1024
RIVALS = (NONE, FP16, POWER)
TRIED = 10
"""Steps of a trial of ``Auto`` from one look at whether it is over to the next."""
SCOPES = ("all", "node", "peers")
"""Bytes that a worker sends in a step are told by the scope of the collective."""
LONG = 0.5
"""Seconds from which a turn's first step is counted too."""


class Candidate:
    """An optimizer on parameters that share their memory with the other candidates', and its step."""

    def __init__(
        self, name: str, label: str, compressor: Compressor | None, weights: list[torch.Tensor], share: float
    ) -> None:
        self.name = name
        self.compressor = compressor
        torch.manual_seed(0)
        self.model: torch.nn.Module = workloads.WORKLOADS[label].make()
        for parameter, shared in zip(self.model.parameters(), weights, strict=True):
            parameter.data = shared
        sgd = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.optimizer: Any = sgd
        self.network: torch.nn.Module = self.model
        if name in (DDP, POWER):
            # With several buckets the hook's later all-reduces, which Gloo's threads start, cross and crash.
            room = {"bucket_cap_mb": ONE_BUCKET_MB} if name == POWER else {}
            self.network = ddp = torch.nn.parallel.DistributedDataParallel(self.model, **room)
            if name == POWER:
                state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
                ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif name != ALONE:
            compression = {NONE: hvd.Compression.none, FP16: hvd.Compression.fp16}.get(name, compressor)
            self.optimizer = hvd.DistributedOptimizer(
                sgd,
                named_parameters=[(f"{label}.{name}.{key}", p) for key, p in self.model.named_parameters()],
                compression=compression,
            )
        self.share = share
        self.forget()

    def forget(self) -> None:
        """Let no step have been measured."""
        self.turns: dict[int, list[dict[str, float]]] = {}
        """The steps of every round."""
        self.spent = 0.0
        self.last: float | None = None

    def step(self, batch: workloads.Batch) -> dict[str, float]:
        """One step: seconds in all and by phase, and the bytes that were sent. Compute, wait and decompress add up to
        the step; compression happens on a thread of its own, beside them, and what the step waits for it is wait."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        if hasattr(self.optimizer, "synchronize"):
            self.optimizer.synchronize()
            waited = time.perf_counter()
            with self.optimizer.skip_synchronize():
                self.optimizer.step()
        else:
            waited = backward
            self.optimizer.step()
        ended = time.perf_counter()
        tally = self.tally()
        return {
            "step": ended - began,
            "forward": forward - began,
            "compute": ended - waited + backward - began,
            "compress": tally["compress"],
            "wait": waited - backward - tally["decompress"],
            "decompress": tally["decompress"],
            **{scope: tally[scope] for scope in SCOPES},
        }

    @property
    def steps(self) -> list[dict[str, float]]:
        """Those of all rounds."""
        return [step for turn in self.turns.values() for step in turn]

    @property
    def counted(self) -> list[dict[str, float]]:
        """The steps that count: the fastest of them, or all."""
        return fastest(self.steps, self.share, key=lambda step: step["step"])

    def tally(self) -> dict[str, float]:
        """What the compressor did since the last call."""
        if self.compressor is None:
            return {"compress": 0.0, "decompress": 0.0, **dict.fromkeys(SCOPES, 0.0)}
        recent = self.compressor.stats()["recent"]
        return {**recent["seconds"], **recent["sent_bytes_by_scope"]}

    def choose(self, batches: list[workloads.Batch]) -> tuple[int, float]:
        """Let ``Auto`` come to its choice; how many steps that took, and seconds. They do not count as its own."""
        assert self.compressor is not None
        steps = 0
        while self.compressor.stats()["auto"]["choice"] is None:
            self.turn(batches, TRIED)
            steps += TRIED
        seconds = self.spent
        self.forget()
        return steps, seconds

    def turn(self, batches: list[workloads.Batch], steps: int, number: int = 0) -> None:
        """Some steps of a round, together with the other ranks; the slowest rank's of each is noted."""
        hvd.barrier()
        watch = quiet.Watch()
        own = [self.step(batches[i % len(batches)]) for i in range(steps)]
        watch.stop()
        for parameter in self.model.parameters():
            parameter.grad = None
        everyone, machines, used = zip(*hvd.allgather_object((own, quiet.boot(), watch.used)), strict=True)
        slowest = [max(ranks, key=lambda step: step["step"]) for ranks in zip(*everyone, strict=True)]
        ours = sum(seconds for machine, seconds in zip(machines, used, strict=True) if machine == quiet.boot())
        others = max(hvd.allgather_object(watch.others(ours)))
        for step in slowest:
            step["others"] = others
        self.spent += sum(step["step"] for step in slowest)
        self.last = slowest[-1]["step"]
        self.turns[number] = [*self.turns.get(number, []), *(slowest if slowest[0]["step"] > LONG else slowest[1:])]


class Profile:
    """When each gradient of a step without communication is there; hooks on the parameters of a candidate."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._names = {id(p): name for name, p in candidate.model.named_parameters()}
        self.tensors = [(name, list(p.shape)) for name, p in candidate.model.named_parameters()]
        self._ready: dict[str, list[float]] = {}

    def measure(self, batches: list[workloads.Batch], steps: int = 4) -> dict[str, Any]:
        """Tensors in the order in which their gradients come, with the share of the backward pass that is over then."""
        shares: dict[str, list[float]] = {name: [] for name, _ in self.tensors}
        times: dict[str, float] = {}

        def note(parameter: torch.Tensor) -> None:
            times[self._names[id(parameter)]] = time.perf_counter()

        hooks = [p.register_post_accumulate_grad_hook(note) for p in self._candidate.model.parameters()]
        forwards = []
        for number in range(steps + 1):
            began = time.perf_counter()
            found = self._candidate.step(batches[number % len(batches)])
            if number == 0:
                continue
            start = began + found["forward"]
            end = max(times.values())
            for name, moment in times.items():
                shares[name].append((moment - start) / (end - start))
            forwards.append((found["forward"] / found["step"], (end - start) / found["step"]))
        for hook in hooks:
            hook.remove()
        order = sorted(self.tensors, key=lambda tensor: median(shares[tensor[0]]))
        return {
            "forward": median(forward for forward, _ in forwards),
            "backward": median(backward for _, backward in forwards),
            "tensors": [{"name": n, "shape": s, "ready": round(median(shares[n]), 4)} for n, s in order],
        }
