import importlib
from pathlib import Path

import numpy as np
import pytest

from hvd_compress import from_config, registry
from hvd_compress.advisor import benchmark
from hvd_compress.advisor.device_timing import inputs_on
from hvd_compress.advisor.exchange_timing import Inputs, sent_array

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(set(registry.BUILT_IN) - {"auto", "lgc"}))
def test_a_step_can_be_repeated(name: str) -> None:
    """A candidate's step leaves what the next one begins with: the memory and the gradient, as restored."""
    inputs = Inputs(5000)
    candidate = benchmark.compressor(inputs, name, from_config(name))
    payloads = []
    for _ in range(2):
        inputs.restore(candidate)
        collectives = candidate.run()
        assert len(collectives) == len(from_config(name).schedule)
        assert sum(sent_array(collective).nbytes for collective in collectives) == candidate.sent_bytes
        payloads.append(collectives)
        assert np.array_equal(inputs.gradient, inputs.original_gradient)
        if candidate.residual is not None:
            assert np.array_equal(candidate.residual, inputs.original_residual)


def test_the_project_s_own_candidates_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/kernels.py, at a size for which there are no goals."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kernels = importlib.import_module("kernels")
    inputs = Inputs(20_000)
    rows = benchmark.measure(inputs, kernels.candidates(inputs, peers_only=False), rounds=1)
    assert rows[0]["kind"] == benchmark.UNIT
    assert all((row["kind"] == benchmark.PEER) == row["name"].startswith("torch") for row in rows)
    for start in kernels.GOALS:
        assert any(row["name"].startswith(start) for row in rows), start
    assert kernels.goal("SIDCo 0.01, pareto", 4_000_000) == kernels.GOALS["SIDCo"][1]


def test_candidates_on_a_device_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Triton's interpreter, on the CPU: that they run, and how often the host waits. No time means anything here."""
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="the device kernels need Triton: pip install triton")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    on_device = importlib.import_module("on_device")
    inputs = inputs_on("cpu")(4096)
    rows = benchmark.measure(inputs, on_device.candidates(inputs, compiled=False), rounds=1)
    waits = {row["name"]: row["waits"] for row in rows}
    assert all((row["kind"] == benchmark.PEER) == row["name"].startswith("torch") for row in rows)
    assert all(any(name.startswith(start) for name in waits) for start in on_device.GOALS)
    assert waits["SIDCo 0.01"] == 2  # for the sample, and for what is selected
    assert waits["select, threshold given, 0.01"] == waits["decode of 8 payloads, 0.01"] == 1
    assert waits["quantize + pack, 8 bits"] == waits["unpack, 8 bits"] == waits["residual.add_(gradient)"] == 0
    assert on_device.goal("SIDCo 0.01", 25_600_000) == 1.6


@pytest.mark.parametrize(
    ("device", "match"), [("cuda:x", "--device: "), ("meta", "--device must be cuda"), ("cuda", "finds no CUDA device")]
)
def test_what_is_no_device(device: str, match: str) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=match):
        inputs_on(device)


def test_small_sizes_get_more_rounds() -> None:
    assert [benchmark.rounds_for(n, 5) for n in (1000, 2_000_000, 30_000_000)] == [50, 15, 5]
