import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from hvd_compress import kernels
from tests.ranks.scenario import Job
from tests.ranks.server import Server
from tests.recording import Recorder

# The same examples in every run; HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=40, database=None, print_blob=True
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def use_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that makes every compressor started from then on use the kernel set of that name."""

    def use(name: str) -> None:
        monkeypatch.setenv("HVD_COMPRESS_KERNELS", name)
        kernels.get.cache_clear()

    yield use
    monkeypatch.undo()
    kernels.get.cache_clear()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Sees every collective of every simulation in the test."""
    return Recorder(monkeypatch)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Starts ranks, and keeps them as long as the tests are about the same job."""
    server = Server()
    yield server
    server.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests about the same job one after the other, so that its ranks start once.

    The last job of PyTorch and the first of TensorFlow are those whose payloads a test compares: it ends the one and
    starts the other.
    """

    def parameters(item: pytest.Item) -> dict[str, Any]:
        return item.callspec.params if hasattr(item, "callspec") else {}

    def place(item: pytest.Item) -> tuple[Any, ...]:
        job: Job = parameters(item)["job"]
        marked = parameters(item).get("scenario")
        if marked is not None:
            order = (marked.last, not marked.first)
        else:
            order = (item.get_closest_marker("ends_ranks") is not None, True)
        ranks = -job.ranks if job.framework == "torch" else job.ranks
        return ("mpi", "torch", "tensorflow").index(job.framework), job.launcher, ranks, order

    ordered = iter(sorted((item for item in items if "job" in parameters(item)), key=place))
    items[:] = [next(ordered) if "job" in parameters(item) else item for item in items]
