"""``hvd.elastic.TorchState`` keeps compressors too: Horovod has a registry of what it keeps besides plain objects."""

from __future__ import annotations

import horovod.torch as hvd
from horovod.torch.elastic.state import StateHandler, get_handler_registry

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.elastic import CommittedState


class CompressorStateHandler(StateHandler):  # type: ignore[misc]
    """Commits, restores and synchronizes one compressor."""

    def __init__(self, compressor: Compressor) -> None:
        super().__init__(compressor)
        self._committed = CommittedState(compressor)

    def save(self) -> None:
        self._committed.save()

    def restore(self) -> None:
        self._committed.restore()

    def sync(self) -> None:
        self._committed.sync(hvd.rank(), hvd.size(), hvd.broadcast_object)

    def set_value(self, value: Compressor) -> None:
        self._committed = CommittedState(value)
        super().set_value(value)


def register() -> None:
    """Let Horovod know, once."""
    registry = get_handler_registry()
    if all(handler is not CompressorStateHandler for _, handler in registry):
        registry.append((Compressor, CompressorStateHandler))
