"""``hvd.elastic.TorchState`` keeps compressors too: Horovod has a registry of what it keeps besides plain objects.

Of the registry's handlers it tells nothing when hosts change, so two methods of ``TorchState`` are extended (known of
Horovod 0.28.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.elastic.state import StateHandler, TorchState, get_handler_registry

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.drivers.elastic_states import extend_changes
from hvd_compress.drivers.leaving import Job
from hvd_compress.drivers.torch.driver import TorchDriver
from hvd_compress.drivers.torch.memory_unit import MemoryUnit
from hvd_compress.kernels import Float32


def _total(array: Float32) -> Float32:
    total: Float32 = hvd.allreduce(torch.from_numpy(array), op=hvd.Sum, name="hvd_compress.leaving").numpy()
    return total


JOB = Job(hvd.rank, hvd.size, hvd.broadcast_object, hvd.allgather_object, _total)


class _Committed(CommittedState):
    """Knows the loss scale of a scaler that was noticed, too, which the state does not say."""

    def save(self) -> None:
        super().save()
        unit = self._unit()
        self._scale = None if unit is None else unit.noticed_scale

    def restore(self) -> None:
        super().restore()
        unit = self._unit()
        if unit is not None and self._scale is not None:
            unit.noticed_scale = self._scale

    def _unit(self) -> MemoryUnit | None:
        driver = self._compressor.runtime.driver
        return driver.unit if isinstance(driver, TorchDriver) else None


class CompressorStateHandler(StateHandler):  # type: ignore[misc]
    """Commits, restores and synchronizes one compressor."""

    def __init__(self, compressor: Compressor) -> None:
        super().__init__(compressor)
        self.committed = _Committed(compressor)

    def save(self) -> None:
        self.committed.save()

    def restore(self) -> None:
        self.committed.restore()

    def sync(self) -> None:
        self.committed.sync(JOB)

    def set_value(self, value: Compressor) -> None:
        self.committed = _Committed(value)
        super().set_value(value)


def _committed(state: Any) -> Iterator[CommittedState]:
    for handler in state._handlers.values():
        if isinstance(handler, CompressorStateHandler):
            yield handler.committed


def register() -> None:
    """Let Horovod know, once."""
    registry = get_handler_registry()
    if all(handler is not CompressorStateHandler for _, handler in registry):
        registry.append((Compressor, CompressorStateHandler))
        extend_changes(TorchState, _committed, JOB)
