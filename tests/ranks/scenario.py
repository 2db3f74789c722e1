"""Mark functions as scenarios: what all ranks of a job run together, and the process of the tests judges.

    @scenario("mpirun 2", "gloo 2", long=["mpirun 4"])
    def gradients_are_averaged() -> None:
        ...

A module below tests/ranks/torch, tests/ranks/tensorflow or tests/ranks/mpi may hold scenarios; tests/multiprocess finds
them all. Importing it must start neither Horovod nor MPI.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import pytest

LAUNCHERS = ("alone", "mpirun", "horovodrun", "gloo", "nodes")
LIMIT = 300
"""Seconds that a scenario may take unless it says otherwise; most take one or two, on free cores."""


@dataclass(frozen=True)
class Job:
    """What is started once for many scenarios."""

    framework: str
    launcher: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.framework} {self.launcher} {self.ranks}"


@dataclass(frozen=True)
class Scenario:
    """A function without arguments, and where it runs."""

    function: Callable[..., None]
    jobs: tuple[Job, ...]
    long: tuple[Job, ...]
    limit: float
    first: bool
    last: bool

    def __str__(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"


def job_of(module: str, text: str) -> Job:
    """Return the job that a scenario's module calls ``"mpirun 2"``."""
    launcher, _, ranks = text.partition(" ")
    if launcher not in LAUNCHERS or not ranks.isdecimal():
        raise ValueError(f"a job is a launcher ({', '.join(LAUNCHERS)}) and a number of ranks, got {text!r}")
    return Job(module.split(".")[2], launcher, int(ranks))


def scenario(
    *jobs: str, long: Sequence[str] = (), limit: float = LIMIT, first: bool = False, last: bool = False
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Mark a function as a scenario.

    Args:
        jobs: Where it runs in every test run: a launcher and a number of ranks, ``"mpirun 2"``.
        long: Where it runs in the long tests besides.
        limit: Seconds after which it counts as hanging.
        first: Whether it needs ranks that have started the same collectives so far, which is how Horovod numbers those
            without a name. Scenarios in which something fails on one rank alone run after it.
        last: Whether it leaves the ranks in a state that other scenarios do not expect, such as collectives that
            nobody will finish. It runs when the others have, and only its like run on these ranks after it.
    """

    def mark(function: Callable[[], None]) -> Callable[[], None]:
        places, more = ([job_of(function.__module__, text) for text in texts] for texts in (jobs, long))
        rest = tuple(job for job in more if job not in places)
        if not places and not rest:
            raise ValueError(f"{function.__name__}: a scenario runs somewhere, for example on @scenario('mpirun 2')")
        function.scenario = Scenario(function, tuple(places), rest, limit, first, last)  # type: ignore[attr-defined]
        return function

    return mark


def scenarios(package: ModuleType) -> Iterator[Scenario]:
    """Yield the scenarios of all modules of a package, in their order."""
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for thing in vars(module).values():
            if isinstance(marked := getattr(thing, "scenario", None), Scenario) and thing.__module__ == found.name:
                yield marked


def each_scenario(package: ModuleType) -> pytest.MarkDecorator:
    """Return what makes a test with the arguments ``job`` and ``scenario`` one test for each that there is."""
    parameters = [
        pytest.param(job, marked, id=f"{job.launcher}-{job.ranks}-{marked}", marks=marks)
        for marked in scenarios(package)
        for places, marks in ((marked.jobs, ()), (marked.long, (pytest.mark.long,)))
        for job in places
    ]
    return pytest.mark.parametrize(("job", "scenario"), parameters)
