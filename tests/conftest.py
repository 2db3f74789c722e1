import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from hvd_compress import kernels
from tests.recording import Recorder

# The same examples in every run; HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=40, database=None, print_blob=True
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers share the tests (``make test``): those that start several ranks come first, one after the
    other, on one worker, or on two of four or more, by framework; the rest by file."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    for item in items:
        group = str(item.path)
        if item.get_closest_marker("multiprocess"):
            group = "ranks-tensorflow" if workers >= 4 and "tensorflow" in item.path.name else "ranks"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("multiprocess") is None)


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
