import importlib
from pathlib import Path

import numpy as np
import pytest

from hvd_compress import from_config, registry
from hvd_compress.advisor import benchmark
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


def test_small_sizes_get_more_rounds() -> None:
    assert [benchmark.rounds_for(n, 5) for n in (1000, 2_000_000, 30_000_000)] == [50, 15, 5]
