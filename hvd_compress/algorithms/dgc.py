"""Deep Gradient Compression: top-k with momentum correction (Lin, Han, Mao, Wang, Dally; ICLR 2018)."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import ClassVar

from hvd_compress.algorithms.topk import TopK
from hvd_compress.compressor import compressor_dataclass
from hvd_compress.kernels import Kernels
from hvd_compress.memory import Memory, MomentumCorrection
from hvd_compress.momentum import MeanMomentum
from hvd_compress.validation import require_bool, require_number


@compressor_dataclass
class DGC(TopK):
    """Top-k of a momentum-corrected velocity (section 3.1), with momentum factor masking (section 3.3).

    1. ``u = momentum * u + g`` and ``v = v + u`` (instead of ``m + g``).
    2. The k largest of ``v`` are sent; ``u`` and ``v`` are cleared there. In a step with the ratio 1 everything is sent
       and no ``u`` is cleared, as in the authors' program: it is a step of momentum SGD.
    3. What is not sparsified gets the same momentum elsewhere: the means of parameters that are left to Horovod
       (biases, norms, those below ``min_numel``), and weight decay.

    The optimizer itself must have no momentum and no weight decay: they are applied here. Memory: four arrays the size
    of the gradient, and one more with ``weight_decay``.

    Args:
        momentum: beta, in [0, 1).
        nesterov: apply it as Nesterov's: ``v = v + momentum * u + g``.
        clip: the Euclidean norm that you would clip the mean of a parameter's gradients to without compression, or
            None. Every worker clips its own gradient ``g`` of the parameter before it is added to the memory. The
            paper's limit is ``clip / sqrt(N)`` for a worker's part of the mean, ``g / N`` (section 3.2), and so
            ``clip * sqrt(N)`` for ``g``. Parameters are clipped one by one, for they come one by one. Of gradients
            with a loss scale (``use_grad_scaler``) the limit is so many times as large, under PyTorch; under TensorFlow
            neither this nor ``weight_decay`` goes with a loss scale.
        weight_decay: the L2 penalty that you would give the optimizer; its gradient goes through the momentum. Not for
            ``Simulation`` and ``drivers.mpi``, which have no weights.

    Tuning: the momentum you would give the optimizer; a warm-up of the ratio over the first epochs
    (``ratio=WarmUp(0.001, every=steps_per_epoch)``), as in the paper.

    >>> DGC(0.001)
    DGC(ratio=0.001)
    """

    name: ClassVar[str] = "dgc"

    _: KW_ONLY
    momentum: float = 0.9
    nesterov: bool = False
    clip: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("momentum", self.momentum, "in [0, 1) as float32", lambda beta: 0 <= beta < 1 - 2.0**-25)
        require_bool("nesterov", self.nesterov)
        if self.clip is not None:
            require_number("clip", self.clip, "above 0 (or None)", lambda norm: 0 < norm < math.inf)
        require_number("weight_decay", self.weight_decay, "of at least 0", lambda decay: 0 <= decay < math.inf)
        if not self.error_feedback:
            raise ValueError("DGC is error feedback; use TopK(error_feedback=False) for none")

    def new_memory(self, kernels: Kernels, size: int) -> Memory:
        return MomentumCorrection(kernels, size, self.momentum, nesterov=self.nesterov)

    def mean_momentum(self) -> MeanMomentum:
        return MeanMomentum(self.momentum, nesterov=self.nesterov, clip=self.clip, weight_decay=self.weight_decay)

    def gradient_limit(self, workers: int) -> float | None:
        return None if self.clip is None else self.clip * math.sqrt(workers)
