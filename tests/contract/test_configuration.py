"""Parameters: written down and read back, checked, and fixed."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import DGC, FFT, LGC, Compressor, Decay, Half, SIDCo, Steps, TernGrad, TopK, WarmUp, registry
from tests.contract.configurations import CONFIGURATIONS, FURTHER, INTERESTING, from_config, label, make, parameters
from tests.contract.sign_sgd import SignSGD
from tests.simulation import Simulation


def test_every_built_in_compressor_has_configurations_of_its_own() -> None:
    assert set(INTERESTING) >= set(registry.BUILT_IN)


@parameters()
def test_config_round_trip(configuration: dict[str, Any]) -> None:
    compressor = make(configuration)
    config = json.loads(json.dumps(compressor.to_config()))
    again = from_config(config)
    assert type(again) is type(compressor)
    assert dataclasses.asdict(again) == dataclasses.asdict(compressor)
    assert again.to_config() == compressor.to_config()


@parameters()
def test_repr_round_trip(configuration: dict[str, Any]) -> None:
    compressor = make(configuration, seed=4)
    again = eval(repr(compressor), {**vars(hvd_compress), "SignSGD": SignSGD})
    assert type(again) is type(compressor)
    assert dataclasses.asdict(again) == dataclasses.asdict(compressor)
    assert repr(again) == repr(compressor)


@pytest.mark.parametrize("name", registry.names())
def test_defaults(name: str) -> None:
    """Every argument has a default; what is not changed is not written."""
    compressor = registry.get(name)()
    assert compressor.name == name
    assert compressor.to_config() == {"name": name}
    assert repr(compressor) == f"{type(compressor).__name__}()"
    assert type(hvd_compress.from_config(name)) is type(compressor)


@parameters()
def test_frozen_and_hashable(configuration: dict[str, Any]) -> None:
    compressor = make(configuration)
    for field in dataclasses.fields(compressor):
        with pytest.raises(dataclasses.FrozenInstanceError, match=field.name):
            setattr(compressor, field.name, getattr(compressor, field.name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        compressor.ration = 0.1
    assert {compressor: 1}[compressor] == 1


@pytest.mark.parametrize("name", registry.names())
def test_unknown_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'seeed' for compressor .*\(did you mean 'seed'\?\)"):
        hvd_compress.from_config({"name": name, "seeed": 1})
    with pytest.raises(TypeError, match="seeed"):
        registry.get(name)(seeed=1)


@pytest.mark.parametrize("name", registry.names())
def test_common_arguments_are_keyword_only(name: str) -> None:
    """Only an algorithm's own leading arguments may be given by position."""
    positional = [f.name for f in dataclasses.fields(registry.get(name)) if not f.kw_only]
    assert not {"min_numel", "bucket_mb", "seed", "process_set", "error_feedback", "wire"} & set(positional)
    assert len(positional) <= 2


COMMON: list[tuple[str, Any]] = [
    ("min_numel", 0),
    ("min_numel", -1),
    ("min_numel", 1.5),
    ("min_numel", "10"),
    ("min_numel", True),
    ("min_numel", None),
    ("bucket_mb", 0),
    ("bucket_mb", -1),
    ("bucket_mb", 1e9),
    ("bucket_mb", float("nan")),
    ("bucket_mb", "25"),
    ("bucket_mb", True),
    ("bucket_mb", None),
    ("seed", -1),
    ("seed", 0.5),
    ("seed", None),
]
RATIO: list[tuple[str, Any]] = [
    ("ratio", value) for value in (0, -0.1, 1.1, float("nan"), float("inf"), "0.1", None, True, [0.1], 10**400)
]
SPARSE: list[tuple[str, Any]] = [
    *RATIO,
    ("wire", "float64"),
    ("wire", None),
    ("wire", 1),
    ("error_feedback", "no"),
    ("error_feedback", None),
    ("error_feedback", 1),
]
BAD: list[tuple[type[Compressor], str, Any]] = [
    *((registry.get(name), *pair) for name in registry.names() for pair in COMMON),
    *((cls, *pair) for cls in (TopK, DGC, SIDCo) for pair in SPARSE),
    *((DGC, "momentum", value) for value in (-0.1, 1.0, 2, float("nan"), "0.9", None, True)),
    (SIDCo, "estimator", "papers"),
    *((TopK, "memory_unit", value) for value in ("updates", None, 1)),
    *((DGC, "nesterov", value) for value in (1, "yes", None)),
    *((DGC, "clip", value) for value in (0, -1.0, float("inf"), float("nan"), "1", True)),
    *((DGC, "weight_decay", value) for value in (-0.1, float("inf"), float("nan"), "0", None, True)),
    *((SIDCo, "fit", value) for value in ("gauss", None, 1, "Exponential")),
    *((SIDCo, "stages", value) for value in (0, -1, 1.5, "many", None, True)),
    *((LGC, *pair) for pair in (*RATIO, ("error_feedback", 1), ("wire", "range8"), ("variant", "ring"))),
    *((LGC, name, value) for name in ("leader", "dense_steps", "train_steps") for value in (-1, 1.5, "3", True, None)),
    *((LGC, name, value) for name in ("dense", "topk_only") for value in ("stem.*", 3, [1])),
    *((LGC, name, value) for name in ("signs", "floor") for value in (0, "no", None)),
    *((LGC, "encoder", value) for value in (4, [4], "64", [64, 0], [64, 4.0], None)),
    *((LGC, "decoder", value) for value in ([], [4], [4, -1, 4, 4], "32", None)),
    *((LGC, "similarity", value) for value in (-1, "0.1", float("nan"), float("inf"), True)),
    *((LGC, name, value) for name in ("weights", "record") for value in (3, ["x"])),
    (LGC, "trainer", "thread"),
    *((FFT, *pair) for pair in (*RATIO, ("error_feedback", 1))),
    *((FFT, "bits", value) for value in (3, 17, 8.0, None, True, "8")),
    *((FFT, "block", value) for value in (0, 8, 100, 131_072, 4096.0, "4096", True)),
    *((FFT, "mantissa", value) for value in (-1, 9, 2.0, True, "3")),
    *((FFT, "rounding", value) for value in ("up", None, 1)),
    *((TernGrad, "chunk", value) for value in (0, -1, 1.5, "8", "layers", True)),
    *((TernGrad, "shared", value) for value in (1, "yes", None)),
    *((TernGrad, "clip", value) for value in (0, -2.5, float("nan"), float("inf"), "2.5", True)),
    *((Half, "dtype", value) for value in ("float32", "int8", None, 16)),
]


@pytest.mark.parametrize(("cls", "name", "value"), BAD, ids=[f"{c.__name__}-{n}={v!r:.12}" for c, n, v in BAD])
def test_bad_values_are_refused_by_name(cls: type[Compressor], name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.* got ") as caught:
        cls(**{name: value})
    with pytest.raises(type(caught.value), match=rf"\b{name}\b"):
        hvd_compress.from_config({"name": cls.name, name: value})


def test_dgc_without_memory_is_top_k() -> None:
    with pytest.raises(ValueError, match=r"TopK\(error_feedback=False\)"):
        DGC(error_feedback=False)


SCHEDULES = [
    (WarmUp, {"final": 0}),
    (WarmUp, {"final": 0.1, "start": 2}),
    (WarmUp, {"final": 0.1, "start": 0.01}),
    (WarmUp, {"final": 0.1, "factor": 1}),
    (WarmUp, {"final": 0.1, "factor": 0}),
    (WarmUp, {"final": 0.1, "factor": "x"}),
    (WarmUp, {"final": 0.1, "every": 0}),
    (WarmUp, {"final": 0.1, "every": 1.5}),
    (WarmUp, {"final": 0.1, "every": "100"}),
    (Decay, {"start": 0, "final": 0.1, "steps": 1}),
    (Decay, {"start": 0.1, "final": 0, "steps": 1}),
    (Decay, {"start": 0.1, "final": 0.1, "steps": 0}),
    (Decay, {"start": 0.1, "final": 0.1, "steps": None}),
    (Steps, {"values": (0.1, 2), "boundaries": (1,)}),
    (Steps, {"values": (0.1, 0.2), "boundaries": (1, 2)}),
    (Steps, {"values": (0.1, 0.2, 0.3), "boundaries": (2, 1)}),
    (Steps, {"values": (0.1, 0.2, 0.3), "boundaries": (2, 2)}),
    (Steps, {"values": (0.1, 0.2), "boundaries": ("1",)}),
    (Steps, {"values": (0.1, 0.2), "boundaries": (-1,)}),
]


@pytest.mark.parametrize(("kind", "arguments"), SCHEDULES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_schedules(kind: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=kind.__name__):
        kind(**arguments)


def test_schedules_in_configurations() -> None:
    config = {"name": "topk", "ratio": {"schedule": "warmup", "final": 0.001, "every": 50}}
    compressor = hvd_compress.from_config(config)
    assert compressor.ratio == WarmUp(0.001, every=50)
    with pytest.raises(ValueError, match=r"unknown key 'evry' for schedule 'warmup' \(did you mean 'every'\?\)"):
        TopK({"schedule": "warmup", "final": 0.1, "evry": 1})
    with pytest.raises(ValueError, match=r"'schedule': one of .*got 'linear'"):
        TopK({"schedule": "linear"})
    with pytest.raises((TypeError, ValueError), match="final"):
        TopK({"schedule": "warmup"})


def test_schedule_of_one_s_own() -> None:
    """Any function of the step will do; only a configuration cannot be made of it."""
    import numpy as np

    compressor = TopK(lambda step: 0.5 if step == 0 else 0.25, min_numel=1)
    sim = Simulation(compressor, 2)
    sent = [np.count_nonzero(sim.step({"w": [np.arange(1, 9.0)] * 2})["w"]) for _ in range(2)]
    assert sent == [4, 2]
    with pytest.raises(TypeError, match="no configuration"):
        compressor.to_config()
    with pytest.raises(ValueError, match=r"ratio\(0\)"):
        TopK(lambda step: 2.0)
    late = Simulation(TopK(lambda step: 0.5 if step < 1 else 0.0, min_numel=1), 1)
    late.step({"w": [np.ones(4)]})
    with pytest.raises(ValueError, match=r"gave the ratio 0.0 at step 1"):
        late.step({"w": [np.ones(4)]})


def test_labels_are_unique() -> None:
    every = [label(c) for c in (*CONFIGURATIONS, *FURTHER)]
    assert len(set(every)) == len(every)


def test_a_new_compressor_is_one_short_file_of_public_names() -> None:
    """The contract suite runs over it as over those of the package."""
    source = Path(inspect.getfile(SignSGD)).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 40
    imported = re.findall(r"^(?:from|import) (\S+)", source, re.MULTILINE)
    assert set(imported) == {"numpy", "hvd_compress"}
    assert any(configuration["name"] == SignSGD.name for configuration in CONFIGURATIONS)


def test_a_memory_in_units_of_updates_needs_a_memory_and_a_rate() -> None:
    with pytest.raises(ValueError, match="memory_unit='update' needs a memory"):
        TopK(memory_unit="update", error_feedback=False)
    sim = hvd_compress.Simulation(TopK(memory_unit="update"), 1)
    with pytest.raises(ValueError, match="learning rate"):
        sim.step({"w": [np.ones((40, 40), np.float32)]})
