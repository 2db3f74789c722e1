"""``hvd.elastic.TensorFlowKerasState`` and ``TensorFlowState`` keep compressors too.

For PyTorch, Horovod has a registry of what its states can keep; for TensorFlow it has none, and would take a compressor
for plain data: every commit would keep the compressor and not what it holds. So these classes' methods are extended
here, for compressors among their attributes alone (known of Horovod 0.28.1).
"""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError
from horovod.tensorflow.elastic import TensorFlowKerasState, TensorFlowState

from hvd_compress.compressor import Compressor
from hvd_compress.drivers.elastic import CommittedState
from hvd_compress.drivers.elastic_states import extend, extend_changes
from hvd_compress.drivers.leaving import Job
from hvd_compress.kernels import Float32

_COMMITTED = "_hvd_compress_committed"
"""The attribute of a state that has the ``CommittedState`` of its compressors, by name."""


def _total(array: Float32) -> Float32:
    total: Float32 = hvd.allreduce(tf.constant(array), op=hvd.Sum, name="hvd_compress.leaving").numpy()
    return total


JOB = Job(hvd.rank, hvd.size, hvd.broadcast_object, hvd.allgather_object, _total)


def register() -> None:
    """Extend Horovod's classes, once."""
    for cls in (TensorFlowKerasState, TensorFlowState):
        if not hasattr(cls, _COMMITTED):
            setattr(cls, _COMMITTED, None)
            for name, extension in (("save", _save), ("restore", _restore), ("sync", _sync)):
                extend(cls, name, extension)
            extend_changes(cls, lambda state: _committed(state).values(), JOB)


def _committed(state: Any) -> dict[str, CommittedState]:
    """Return what is kept of a state's compressors; begin to keep it, if that has not begun."""
    kept: dict[str, CommittedState] | None = getattr(state, _COMMITTED)
    if kept is None:
        compressors = {name: it for name, it in state._saved_state.items() if isinstance(it, Compressor)}
        kept = {name: CommittedState(compressor) for name, compressor in compressors.items()}
        setattr(state, _COMMITTED, kept)
    return kept


def _save(state: Any, save: Any) -> None:
    kept = _committed(state)
    save()
    for committed in kept.values():
        committed.save()


def _restore(state: Any, restore: Any) -> None:
    kept = _committed(state)
    restore()
    for committed in kept.values():
        committed.restore()


_SAVED = ("_saved_model_state", "_saved_optimizer_state", "_values")
"""The attributes in which these classes save weights, the first thing in ``sync``."""


def _sync(state: Any, sync: Any) -> None:
    kept = _committed(state)
    saved = {name: getattr(state, name) for name in _SAVED if hasattr(state, name)}
    compressors = {name: state._saved_state.pop(name) for name in kept}  # Horovod sends rank 0's to all
    try:
        sync()
        for name in sorted(kept):
            kept[name].sync(JOB)
        saved.clear()
    except tf.errors.UnknownError as error:  # of an operation; hvd.elastic.run knows it while it trains only
        if any(name in error.message for name in ("HorovodAllreduce", "HorovodAllgather", "HorovodBroadcast")):
            raise HorovodInternalError(error) from error
        raise
    finally:
        state._saved_state.update(compressors)
        vars(state).update(saved)  # weights go back to the commit that memories go back to
