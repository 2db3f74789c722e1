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
