"""Two or more ranks that share one GPU train a small network with each of some compressors; ``gpu_check.sh`` runs this.

    mpirun -np 2 python tools/gpu_ranks.py [--device cpu] [--width 512]

NCCL refuses two ranks on one GPU, so everything travels by Horovod's operations for the CPU. Replicas must stay equal
to the last bit, and weights finite. Prints a line for each compressor; exit status 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from typing import Any

STEPS = 8


def compressors() -> list[Any]:
    """Return what is tried: of sparsifiers, quantizers and transforms one or two, and what learns."""
    import hvd_compress

    return [
        hvd_compress.SIDCo(0.05),
        hvd_compress.TopK(0.05, wire="bfloat16"),
        hvd_compress.QSGDMaxNorm(bits=8),
        hvd_compress.FFT(0.2),
        hvd_compress.LGC(ratio=0.05, dense_steps=2, train_steps=3),
    ]


def train(model: Any, compression: Any, device: Any, hvd: Any, torch: Any) -> float:
    """Train a copy of the model; return the seconds of a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=compression)
    took = 0.0
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(1000 * step + hvd.rank())
        inputs = torch.randn(64, model[0].in_features, generator=generator).to(device)
        began = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - began  # of the last step: the first ones compile kernels
    return took


def replicas_equal(model: Any, hvd: Any, torch: Any) -> bool:
    """Return whether all ranks have the same weights, bit for bit."""
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).cpu()
    everyone = hvd.allgather(weights.view(torch.int32)[None])
    return bool((everyone == everyone[0]).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="the device that all ranks share")
    parser.add_argument("--width", type=int, default=512, help="of the network's first layer")
    options = parser.parse_args()
    import horovod.torch as hvd
    import torch

    hvd.init()
    device = torch.device(options.device)
    on_device = device.type == "cuda" or os.environ.get("HVD_COMPRESS_KERNELS") == "device"
    torch.manual_seed(0)
    width = options.width
    layers = torch.nn.Linear(width, 2 * width), torch.nn.ReLU(), torch.nn.Linear(2 * width, width // 2)
    first = torch.nn.Sequential(*layers).to(device)
    good = True
    for compression in compressors():
        if on_device and not compression.runs_on_devices:
            if hvd.rank() == 0:
                print(f"{compression!r}: does not compress on a GPU yet", flush=True)
            continue
        model = copy.deepcopy(first)
        seconds = train(model, compression, device, hvd, torch)
        equal = replicas_equal(model, hvd, torch)
        moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), first.parameters(), strict=True))
        finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
        good &= equal and moved and finite
        if hvd.rank() == 0:
            travels = compression.stats().get("transport", "host")
            print(
                f"{compression!r}: {1000 * seconds:.1f} ms a step, payloads travel from the {travels}, replicas "
                f"{'equal' if equal else 'DIFFER'}, weights {'finite' if finite else 'NOT finite'}"
                f"{'' if moved else ' and NOT trained'}",
                flush=True,
            )
    hvd.shutdown()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
