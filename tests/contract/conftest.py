"""Every property is tested under both schedulers: the one that waits, and the one that a graph calls."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import configurations
from tests.contract.configurations import CONFIGURATIONS
from tests.simulation import GraphSimulation, Simulation

SCHEDULERS = {"waiting": Simulation, "graph": GraphSimulation}

# Under the graph's scheduler one configuration of every kind: what differs within a kind is the algorithm's, not the
# scheduler's. Kinds: the compressor, whether it remembers, and which collectives it has.
_KINDS: dict[Any, dict[str, Any]] = {}
for _configuration in CONFIGURATIONS:
    _compressor = configurations.make(_configuration)
    _key = (_compressor.name, _compressor.error_feedback, _compressor.schedule, _configuration.get("variant"))
    _KINDS.setdefault(_key, _configuration)


@pytest.fixture(params=SCHEDULERS, autouse=True)
def scheduler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The scheduler of all simulations that the test makes by ``configurations.simulation``."""
    monkeypatch.setattr(configurations, "scheduled", SCHEDULERS[request.param])
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the configurations that are of a kind with another one, and tests that make no such simulation."""
    kept = []
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("scheduler") == "graph" and "tests/contract/" in item.nodeid:
            configuration = call.params.get("configuration")
            if configuration is None or not any(configuration is kind for kind in _KINDS.values()):
                continue
            if "simulation" not in item.obj.__code__.co_names and "resumed" not in item.obj.__code__.co_names:
                continue
        kept.append(item)
    items[:] = kept
