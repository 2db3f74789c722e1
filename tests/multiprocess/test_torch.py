"""The PyTorch driver under real mpirun and horovodrun. One launch runs many scenarios; each is a test of its own."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import pytest

from tests.multiprocess.launching import ROOT, launch, run_scenarios

pytestmark = pytest.mark.multiprocess


def scenarios(module: str) -> list[str]:
    """The names in a module's SCENARIOS, without importing it: it would start Horovod here."""
    source = (ROOT / "tests" / "multiprocess" / f"{module}.py").read_text()
    listed = source.split("SCENARIOS = [")[1].split("]")[0]
    return [line.strip(" ,") for line in listed.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("multiprocess")
    return cache(lambda launcher, ranks, module: run_scenarios(launcher, ranks, module, folder))


def check(outcome: dict, scenario: str) -> None:
    assert scenario in outcome, f"never finished; the launch ended with {outcome['returncode']}:\n{outcome['output']}"
    assert not outcome[scenario], outcome[scenario]


@pytest.mark.parametrize("scenario", scenarios("optimizers"))
@pytest.mark.parametrize(
    ("launcher", "ranks"), [("mpirun", 2), ("mpirun", 4), ("horovodrun", 2), ("gloo", 2), ("alone", 1)]
)
def test_optimizers(outcomes, launcher: str, ranks: int, scenario: str) -> None:
    check(outcomes(launcher, ranks, "optimizers"), scenario)


@pytest.mark.parametrize("scenario", scenarios("exchanges"))
@pytest.mark.parametrize(("launcher", "ranks"), [("mpirun", 2), ("mpirun", 3), ("gloo", 2)])
def test_exchanges(outcomes, launcher: str, ranks: int, scenario: str) -> None:
    check(outcomes(launcher, ranks, "exchanges"), scenario)


@pytest.mark.parametrize("scenario", scenarios("lgc"))
@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_lgc(outcomes, launcher: str, scenario: str) -> None:
    check(outcomes(launcher, 2, "lgc"), scenario)


@pytest.mark.parametrize("scenario", scenarios("lgc_route"))
def test_lgc_route(outcomes, scenario: str) -> None:
    check(outcomes("mpirun", 4, "lgc_route"), scenario)


def test_an_end_in_phase_2(outcomes) -> None:
    """With messages under way."""
    assert outcomes("mpirun", 4, "lgc_route")["returncode"] == 0, outcomes("mpirun", 4, "lgc_route")["output"]


@pytest.mark.parametrize("scenario", scenarios("mpi"))
@pytest.mark.parametrize("ranks", [1, 3])
def test_mpi(outcomes, ranks: int, scenario: str) -> None:
    check(outcomes("mpirun", ranks, "mpi"), scenario)


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun", "gloo"])
def test_a_killed_rank_ends_the_job(launcher: str) -> None:
    began = time.monotonic()
    done = launch(launcher, 2, ["-m", "tests.multiprocess.killed"], timeout=120)
    assert done.returncode != 0
    assert "[killed after" not in done.stdout, "the other rank hung"
    assert "step 5" in done.stdout
    assert "step 40" not in done.stdout
    assert time.monotonic() - began < 120
