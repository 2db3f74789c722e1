"""Every registered compressor, in every configuration that takes another path through the code.

``min_numel=1`` so that arrays of all sizes are compressed. A new compressor is covered in its default configuration as
soon as it is registered; configurations of its own go to ``INTERESTING``, and those that
are much like others to ``MORE``.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import Compressor, Sparsifier, registry
from hvd_compress.sparsifier import Selective
from tests.contract.sign_sgd import SignSGD
from tests.simulation import GraphSimulation, Simulation

LEARNS: dict[str, Any] = {"dense_steps": 0, "encoder": [4, 4, 2], "decoder": [4, 4], "trainer": "inline"}
"""LGC with an autoencoder that is quickly trained, and short vectors that it can take. Inline under the graph scheduler
too, which is no simulation to it: when a process is done with training, is not the same in every run."""

TRAINED = Path(__file__).resolve().parent

INTERESTING: dict[str, list[dict[str, Any]]] = {
    "dense": [{}],
    "half": [{}, {"dtype": "float16"}, {"aggregate": "reduce-scatter"}],
    "topk": [
        {"ratio": 0.05},
        {"ratio": 1.0},
        {"wire": "float16"},
        {"wire": "range8"},
        {"error_feedback": False},
        {"ratio": {"schedule": "warmup", "final": 0.01, "every": 2}},
        {"ratio": 0.05, "aggregate": "reduce-scatter"},
    ],
    "dgc": [
        {"ratio": 0.05},
        {"momentum": 0.0},
        {"wire": "bfloat16", "nesterov": True},
        {"ratio": 0.05, "aggregate": "reduce-scatter"},
    ],
    "sidco": [
        {"ratio": 0.05, "fit": "exponential", "stages": "auto"},
        {"ratio": 0.05, "fit": "gamma-pareto", "stages": "adaptive"},
        {"ratio": 0.05, "fit": "pareto", "stages": 3},
        {"ratio": 0.05, "fit": "gamma-pareto", "stages": "adaptive", "estimator": "paper"},
        {"error_feedback": False},
        {"ratio": 0.05, "aggregate": "reduce-scatter", "wire": "float16"},
    ],
    "shared-topk": [{"ratio": 0.05}, {"error_feedback": False}],
    "qsgd-maxnorm": [{}, {"bits": 16}, {"bits": 4, "norm": "l2"}],
    "qsgd-maxnorm-multiscale": [{}, {"bits": [3, 16], "norm": "l2"}],
    "randk-maxnorm": [{"ratio": 0.1}, {"ratio": 0.05, "norm": "l2", "error_feedback": False}],
    "randk-maxnorm-multiscale": [{"ratio": 0.3}, {"error_feedback": False}],
    "terngrad": [{}, {"chunk": None, "clip": None}, {"chunk": "layer", "shared": True}],
    "two-level": [
        {"compressor": {"name": "topk", "ratio": 0.05}, "ranks_per_node": 2},
        {"compressor": {"name": "dgc", "ratio": 0.05, "aggregate": "reduce-scatter"}, "ranks_per_node": 2},
        {"compressor": {"name": "randk-maxnorm", "ratio": 0.1}, "ranks_per_node": 2},
        {"compressor": {"name": "dense"}, "ranks_per_node": 2},
    ],
    "lgc": [
        {"ratio": 0.3, **LEARNS, "train_steps": 3, "floor": False, "dense": [], "topk_only": []},
        {"ratio": 0.3, **LEARNS, "train_steps": 3, "floor": False, "variant": "gather", "seed": 3},
        *(
            {
                "ratio": 0.3,
                **LEARNS,
                "variant": v,
                "dense": [],
                "topk_only": [],
                "weights": str(TRAINED / f"lgc-{v}.safetensors"),
            }
            for v in ("allreduce", "gather")
        ),
    ],
    "auto": [{"candidates": [{"name": "sidco", "ratio": 0.05}]}, {"candidates": ["topk", "sidco"]}],
    "fft": [{}, {"block": None}, {"error_feedback": False, "rounding": "stochastic"}],
}

MORE: dict[str, list[dict[str, Any]]] = {
    "topk": [
        {"ratio": 0.001},
        {"wire": "bfloat16"},
        {"ratio": 0.3, "aggregate": "reduce-scatter", "wire": "range8"},
        {"ratio": 1.0, "aggregate": "reduce-scatter", "error_feedback": False},
        {"ratio": {"schedule": "warmup", "final": 0.01, "every": 2}, "aggregate": "auto", "link": [1e6, 0.0]},
    ],
    "dgc": [
        {"wire": "range8"},
        {"ratio": {"schedule": "decay", "start": 0.3, "final": 0.01, "steps": 4}},
    ],
    "sidco": [
        *(
            {"ratio": 0.05, "fit": fit, "stages": stages}
            for fit in ("exponential", "gamma-pareto", "pareto")
            for stages in ("auto", "adaptive", 1, 3)
        ),
        {"ratio": 0.001},
        {"ratio": 1.0},
        {"wire": "bfloat16"},
        {"wire": "float16"},
        {"wire": "range8"},
        {"ratio": {"schedule": "steps", "values": [0.1, 0.02], "boundaries": [2]}},
    ],
    "qsgd-maxnorm": [{"bits": 2}],
    "qsgd-maxnorm-multiscale": [{"bits": [2, 5, 9]}],
    "randk-maxnorm": [
        {"ratio": 1.0, "bits": 4},
        {"ratio": {"schedule": "steps", "values": [0.5, 0.2], "boundaries": [2]}},
    ],
    "randk-maxnorm-multiscale": [{"bits": [3, 6, 9]}],
    "terngrad": [{"chunk": 100}],
    "two-level": [
        {"compressor": {"name": "sidco", "ratio": 0.05}, "ranks_per_node": 3},
        {"compressor": {"name": "topk", "ratio": 0.05, "error_feedback": False}, "ranks_per_node": 2},
        {"compressor": {"name": "qsgd-maxnorm"}, "ranks_per_node": 2},
        {"compressor": {"name": "qsgd-maxnorm-multiscale"}, "ranks_per_node": 2},
        {"compressor": {"name": "fft"}, "ranks_per_node": 2},
        {"compressor": {"name": "terngrad"}, "ranks_per_node": 2},
        {"compressor": {"name": "half"}, "ranks_per_node": 2},
        {"compressor": {"name": "shared-topk", "ratio": 0.05}, "ranks_per_node": 2},
        {"compressor": {"name": "half", "dtype": "float16"}, "ranks_per_node": 2},
    ],
    "lgc": [
        {"ratio": 0.3, **LEARNS, "train_steps": 3, "dense_steps": 1, "wire": "bfloat16"},
        {"ratio": 0.05, **LEARNS, "dense": [], "wire": "float16", "signs": False},
    ],
    "fft": [
        {"block": 64, "bits": 5},
        {"ratio": 0.01},
        {"ratio": 1.0, "bits": 16},
        {"rounding": "stochastic"},
        {"mantissa": 2, "bits": 6},
        {"ratio": {"schedule": "diminishing_theta", "theta": 0.95, "every": 2}},
    ],
}
"""What differs from those in degree, or combines what they have apart: for the long tests."""

CONFIGURATIONS: list[dict[str, Any]] = [
    {"name": name, **arguments}
    for name in (*registry.names(), SignSGD.name)
    for arguments in INTERESTING.get(name, [{}])
]
FURTHER: list[dict[str, Any]] = [
    {"name": name, **arguments}
    for name, every in MORE.items()
    for arguments in every
    if arguments not in INTERESTING[name]
]
FIRST = list({c["name"]: c for c in reversed(CONFIGURATIONS)}.values())
"""One configuration of each compressor."""


def make(configuration: dict[str, Any], **changes: Any) -> Compressor:
    return from_config({"min_numel": 1, **configuration, **changes})


def algorithm(compressor: Compressor) -> Compressor:
    """What compresses: the compressor itself, or the one that it wraps."""
    wrapped: Compressor = getattr(compressor, "compressor", compressor)
    return wrapped


def from_config(configuration: dict[str, Any]) -> Compressor:
    """As ``hvd_compress.from_config``, for the third party's compressor too."""
    if configuration["name"] == SignSGD.name:
        return SignSGD(**{key: value for key, value in configuration.items() if key != "name"})
    return hvd_compress.from_config(configuration)


def label(configuration: dict[str, Any]) -> str:
    parts = []
    for key, value in configuration.items():
        text = (value.get("schedule") or label(value)) if isinstance(value, dict) else value
        if key == "weights":
            text = Path(value).stem
        parts.append(str(text) if key == "name" else f"{key}={text}")
    return "-".join(parts)


def parameters(keep: Any = lambda compressor: True) -> Any:
    """Parametrize a test's ``configuration`` over those whose compressor ``keep`` says yes to."""
    return pytest.mark.parametrize(
        "configuration",
        [
            pytest.param(c, id=label(c), marks=marks)
            for every, marks in ((CONFIGURATIONS, ()), (FURTHER, pytest.mark.long))
            for c in every
            if keep(make(c))
        ],
    )


def product(axis: str, values: Iterable[Any], keep: Any = lambda compressor: True) -> Any:
    """Parametrize over ``configuration`` as ``parameters`` does, times the values of another argument.

    Every configuration meets the first value, and one of each compressor meets all; the rest is for the long tests.
    """
    first, *others = values
    cases = [
        *((c, first, False) for c in CONFIGURATIONS),
        *((c, value, c not in FIRST) for c in CONFIGURATIONS for value in others),
        *((c, value, True) for c in FURTHER for value in (first, *others)),
    ]
    return pytest.mark.parametrize(
        (axis, "configuration"),
        [
            pytest.param(value, c, id=f"{value}-{label(c)}", marks=pytest.mark.long if long else ())
            for c, value, long in cases
            if keep(make(c))
        ],
    )


def remembers(compressor: Compressor) -> bool:
    return bool(compressor.error_feedback)


def selects(compressor: Compressor) -> bool:
    """Whether it sends a part of the elements."""
    return isinstance(algorithm(compressor), Selective)


def sparse(compressor: Compressor) -> bool:
    """Whether it all-gathers sparse payloads, which the tests can read on their own."""
    return isinstance(compressor, Sparsifier) and compressor.aggregate == "all-gather"


def exact(compressor: Compressor) -> bool:
    """Whether the mean of what arrives is what each worker's memory lacks: not of an average of codes, decoded, and
    only on average where rounding is random."""
    return not (random(compressor) or (getattr(compressor, "weights", None) and compressor.variant == "allreduce"))


def random(compressor: Compressor) -> bool:
    """Whether what is sent is rounded at random, without bias."""
    return "maxnorm" in algorithm(compressor).name or getattr(algorithm(compressor), "rounding", None) == "stochastic"


def held_back(compressor: Compressor, name: str) -> np.ndarray:
    """What the memory holds of a gradient, and will send one day."""
    arrays = compressor.state_dict()["memory"][name]
    return arrays["velocity" if "velocity" in arrays else "residual"]


def compressed_input(compressor: Compressor, before: dict[str, np.ndarray], gradient: np.ndarray) -> np.ndarray:
    """``a``: what the algorithm is to compress, from the memory before the step and the gradient, in float32; denormals
    of the memory count as zero."""
    before = {
        key: np.where(np.abs(held) < np.finfo(np.float32).tiny, np.float32(0), held) for key, held in before.items()
    }
    with np.errstate(over="ignore", invalid="ignore"):
        dgc = algorithm(compressor)
        if isinstance(dgc, hvd_compress.DGC):
            beta = np.float32(dgc.momentum)
            momentum = beta * before["momentum"] + gradient if before else gradient
            step = beta * momentum + gradient if dgc.nesterov else momentum
            return before["velocity"] + step if before else step
        return before["residual"] + gradient if before else gradient


def memory(compressor: Compressor, name: str) -> dict[str, np.ndarray]:
    """The memory's arrays of one gradient; empty before the first step and without error feedback."""
    return compressor.state_dict().get("memory", {}).get(name, {})


scheduled: type[Simulation | GraphSimulation] = Simulation
"""What ``simulation`` makes: conftest.py sets it to one scheduler after the other."""


def simulation(configuration: dict[str, Any], workers: int, **changes: Any) -> Simulation | GraphSimulation:
    return scheduled(make(configuration, **changes), workers)


def with_ratio(configuration: dict[str, Any], ratio: float) -> Compressor:
    return dataclasses.replace(make(configuration), ratio=ratio)
