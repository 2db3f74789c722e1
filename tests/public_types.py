"""What a type checker, and so an editor's completion, knows of the public names. mypy reads this file; nothing runs it.

Strict mypy says so if an ignored error below is none: then it has taken an argument that the line says it must refuse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, assert_type

import numpy as np

import hvd_compress
from hvd_compress import (
    DGC,
    FFT,
    LGC,
    Auto,
    Compressor,
    Decay,
    Dense,
    DiminishingTheta,
    Half,
    QSGDMaxNorm,
    QSGDMaxNormMultiScale,
    RandKMaxNorm,
    RandKMaxNormMultiScale,
    Recorder,
    SharedTopK,
    SIDCo,
    Simulation,
    Steps,
    TernGrad,
    TopK,
    TwoLevel,
    WarmUp,
    elastic,
)
from hvd_compress.kernels import Float32


def constructors() -> None:
    """Every argument by its name, with another value than its default, and what each compressor shares with others."""
    assert_type(Dense(min_numel=1, bucket_mb=1.0, seed=1, process_set=None, nonfinite="zero"), Dense)
    assert_type(Half("float16", aggregate="reduce-scatter"), Half)
    assert_type(TopK(0.1, error_feedback=False, memory_unit="update", wire="range8", aggregate="auto"), TopK)
    assert_type(DGC(ratio=0.1, momentum=0.5, nesterov=True, clip=1.0, weight_decay=1e-4, link=(1e9, 1e-4)), DGC)
    assert_type(SIDCo(WarmUp(0.001, every=500), fit="pareto", stages=3, estimator="paper"), SIDCo)
    assert_type(SIDCo(ratio=Decay(0.1, 0.001, steps=1000), stages="adaptive"), SIDCo)
    assert_type(SharedTopK(ratio=Steps((0.1, 0.01), (100,)), low_pass=0.5), SharedTopK)
    assert_type(FFT(DiminishingTheta(0.9), bits=8, block=None, rounding="stochastic"), FFT)
    assert_type(QSGDMaxNorm(8, norm="l2"), QSGDMaxNorm)
    assert_type(QSGDMaxNormMultiScale(bits=(4, 8)), QSGDMaxNormMultiScale)
    assert_type(RandKMaxNorm(ratio=0.1, bits=8), RandKMaxNorm)
    assert_type(RandKMaxNormMultiScale(ratio=0.1, bits=(4, 8)), RandKMaxNormMultiScale)
    assert_type(TernGrad(chunk="layer", shared=True, clip=None), TernGrad)
    assert_type(LGC(0.001, variant="gather", trainer="inline", route="mpi", wire="float16"), LGC)
    assert_type(TwoLevel(SIDCo(0.01), ranks_per_node=4), TwoLevel)
    assert_type(Auto(["dense", {"name": "topk"}, SIDCo()], accuracy="fast", look_again=500), Auto)


def mistakes() -> None:
    TopK(raito=0.1)  # type: ignore[call-arg]
    SIDCo("0.01")  # type: ignore[arg-type]
    SIDCo(0.01, "pareto")  # type: ignore[call-arg,arg-type]
    TopK(wire="float64")  # type: ignore[arg-type]
    Half("bf16")  # type: ignore[arg-type]
    Half("float16", "all-reduce")  # type: ignore[call-arg,arg-type]
    Auto(accuracy="best")  # type: ignore[arg-type]
    TwoLevel(0.01)  # type: ignore[arg-type]
    TopK().ratio = 0.5  # type: ignore[misc]


def attributes(compressor: TopK) -> None:
    assert_type(compressor.wire, Literal["float32", "bfloat16", "float16", "range8"])
    assert_type(compressor.min_numel, int)
    assert_type(compressor.to_config(), dict[str, Any])
    assert_type(compressor.state_dict(), dict[str, Any])
    assert_type(compressor.flush(), None)
    assert_type(compressor.discard(), None)


def configurations() -> None:
    assert_type(hvd_compress.from_config("sidco", ratio=0.01), Compressor)
    assert_type(hvd_compress.from_config(Path("mine.yaml")), Compressor)
    assert_type(hvd_compress.from_config({"name": "topk"}), Compressor)
    assert_type(hvd_compress.compressor_names(), list[str])
    hvd_compress.from_config(3)  # type: ignore[arg-type]


def tools(arrays: dict[str, list[np.ndarray[Any, np.dtype[np.float32]]]]) -> None:
    simulation = Simulation(TopK(), workers=2)
    assert_type(simulation.step(arrays)["w"], Float32)
    with Recorder(TopK(), "run.json", rank=0, ranks=2, csv="run.csv", wandb={"mode": "offline"}) as recorder:
        assert_type(recorder, Recorder)
        recorder.step(0.5)
        recorder.epoch(accuracy=0.5, loss=0.1)
    assert_type(elastic.redistribute([TopK().state_dict()], 2), list[dict[str, Any]])


def under_pytorch(optimizer: Any, parameters: Any) -> None:
    """Horovod has no types of its own: what it is given has."""
    import horovod.torch as hvd

    hvd.DistributedOptimizer(optimizer, named_parameters=parameters, compression=SIDCo(0.01))
    hvd.DistributedOptimizer(optimizer, compression=SIDCo(fit="normal"))  # type: ignore[arg-type]
