"""What a call of Horovod's asks of a reduction beside the tensors, and the gradient that TensorFlow gets for it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from tensorflow.python.eager import record

_numbers = itertools.count()


@dataclass(frozen=True)
class Reduction:
    """Horovod's ``op`` and factors, among the ranks of ``process_set``."""

    op: int
    prescale_factor: float
    postscale_factor: float
    process_set: Any
    ignore_name_scope: bool

    def factor(self) -> float:
        """Return what the mean over the ranks, as many as there are now, is multiplied by."""
        factor = self.prescale_factor * self.postscale_factor
        return factor * float(self.process_set.size()) if self.op == hvd.Sum else factor

    def differentiable(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Return ``outputs`` as tensors whose gradient with respect to ``inputs`` is the one that Horovod registers.

        The backward pass reduces the gradients uncompressed, with the same op, factors and process set. TensorFlow's
        own way to say so, ``tf.custom_gradient``, keeps every graph that it was used in alive for ever.
        """
        with record.stop_recording():
            if tf.executing_eagerly():
                results = [tf.identity(output) for output in outputs]
            else:
                graph = tf.compat.v1.get_default_graph()
                with graph.gradient_override_map({"IdentityN": _registered(self)}):
                    results = tf.identity_n([*outputs, *inputs])[: len(outputs)]
        record.record_operation("HvdCompressAllreduce", results, list(inputs), self.backward)
        return results

    def backward(self, *gradients: Any) -> list[Any]:
        """Return the gradients of the inputs, given those of the outputs."""
        return [gradient if gradient is None else self._allreduce(gradient) for gradient in gradients]

    def _allreduce(self, gradient: Any) -> Any:
        return hvd.allreduce(
            tf.convert_to_tensor(gradient),
            op=self.op,
            prescale_factor=self.prescale_factor,
            postscale_factor=self.postscale_factor,
            process_set=self.process_set,
            ignore_name_scope=self.ignore_name_scope,
        )


@functools.cache
def _registered(reduction: Reduction) -> str:
    """Register the gradient of ``Reduction.differentiable``'s operation; the same name for equal reductions."""
    name = f"HvdCompressAllreduce{next(_numbers)}"

    @tf.RegisterGradient(name)  # type: ignore[untyped-decorator]
    def backward(_: Any, *gradients: Any) -> list[Any]:
        count = len(gradients) // 2
        return [None] * count + reduction.backward(*gradients[:count])

    return name
